"""Plans for attempts of every strategy, with repeatable randomness."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from connectx._connect.ledger import Ledger, Numbers, Shelf, template
from connectx._connect.plan import FULL_RANGE
from connectx._connect.rest import Rest
from connectx._connect.strategies import STRATEGIES, Case, Need, Program
from connectx.addresses import PortRange

EVERYTHING: Final = frozenset(Need)
WITHOUT_WINDOWS: Final = frozenset(Need) - {Need.WINDOW, Need.FAST_SEARCH, Need.PORT_IN_RANGE}
SLOW_SEARCH: Final = frozenset(Need) - {Need.FAST_SEARCH}

#: Every program there is, by a name for it.
PROGRAMS: Final[dict[str, Program]] = {
    f"{strategy.name}, {row.case.value}, {number}": row.program
    for strategy in STRATEGIES.values()
    for number, row in enumerate(strategy.rows)
}


@dataclass(frozen=True)
class Terms:
    """What an attempt has to know of a plan."""

    program: Program
    ledger: Ledger
    random: Callable[[int], bytes]
    ports: PortRange
    search: PortRange = FULL_RANGE
    asked: int = 0
    walks_in_steps_of_one: bool = False


def drawing(seed: int) -> Callable[[int], bytes]:
    """As os.urandom(), but the same again for the same seed."""
    return random.Random(seed).randbytes  # noqa: S311 - to be repeatable is what it is for


def shelf_of(
    ports: PortRange,
    reserved: Iterable[int] = (),
    *,
    seed: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
    walks: bool = False,
) -> Shelf:
    holes = [PortRange(port, port) for port in reserved]
    numbers = Numbers(drawing(seed))
    return Shelf(ports.low, template(ports, holes), numbers, Rest(clock), "here", walks=walks)


def ledger_of(
    ports: PortRange, reserved: Iterable[int] = (), *, seed: int = 0, walks: bool = False
) -> Ledger:
    return Ledger(shelf_of(ports, reserved, seed=seed, walks=walks), 0)


def plan_of(
    strategy: str,
    case: Case,
    ports: PortRange,
    reserved: Iterable[int] = (),
    *,
    available: frozenset[Need] = EVERYTHING,
    asked: int = 0,
    window: int = 0,
    seed: int = 0,
    walks: bool = False,
) -> Terms | None:
    """None where the strategy does not serve the case; walks: as for a shelf."""
    program = STRATEGIES[strategy].program(case, available)
    if program is None:
        return None
    ledger = ledger_of(ports, reserved, seed=seed, walks=walks)
    return Terms(program._replace(window=window), ledger, drawing(seed + 1), ports, asked=asked)
