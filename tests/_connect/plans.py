"""Plans for attempts of every strategy, with repeatable randomness."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from connectx._connect.attempt import Plan
from connectx._connect.ledger import Ledger, template
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


def drawing(seed: int) -> Callable[[int], Sequence[int]]:
    """As connectx._connect.namespace.draw(), but the same again for the same seed."""
    source = random.Random(seed)  # noqa: S311 - to be repeatable is what it is for
    return lambda count: [source.getrandbits(32) for _ in range(count)]


def ledger_of(ports: PortRange, reserved: Iterable[int] = (), *, seed: int = 0) -> Ledger:
    holes = [PortRange(port, port) for port in reserved]
    return Ledger(ports.low, template(ports, holes), drawing(seed))


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
) -> Plan | None:
    """None where the strategy does not serve the case."""
    program = STRATEGIES[strategy].program(case, available)
    if program is None:
        return None
    ledger = ledger_of(ports, reserved, seed=seed)
    return Plan(program, ledger, drawing(seed + 1), ports, window=window, asked=asked)
