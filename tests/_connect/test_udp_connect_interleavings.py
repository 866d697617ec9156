"""The UDP lock, its system calls interleaved in every order with those of others.

The library's own function runs on model sockets, in threads of which one at a time
may go on, until its next system call. What chance would show in one of a thousand
runs on a real kernel (tests/test_udp_race.py) is met here for certain.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectx._connect import udp_connect
from connectx._connect.udp_connect import claim, claim_alone
from connectx.addresses import Address
from connectx.linux import socket_dump, uapi
from connectx.linux.sock_diag import SocketRecord
from connectx.linux.socket_dump import Filter
from tests._connect.udp_claims import FIRST, SECOND, Claim, Process, Race, Rival, models
from tests._connect.udp_model import HERE, OTHER, THERE, ModelSocket
from tests.race.variants import VARIANTS

claim_from_a_window: Final = functools.partial(claim, releasable=True)


def alone_or_shared(
    sock: Any,
    lookup: Any,
    netlink: Any,
    source: Address,
    destination: Address,
    **others: Any,
) -> None:
    """As connectx connects: a port that nobody has without a lookup, any other by the lock."""
    if not claim_alone(sock, source, destination):
        claim(sock, lookup, netlink, source, destination, **others)


claim_asked: Final = functools.partial(claim, beside_services=True)

ASKING: Final = functools.partial(Rival, claim_asked, devices=(OTHER,))

CLAIMS: Final = [claim, claim_asked, claim_from_a_window, alone_or_shared]


@pytest.fixture(autouse=True, scope="module")
def _models() -> Iterator[None]:
    with models():
        yield


#: Steps of a claim that nothing comes in the way of: start, bind, option, lookup,
#: connect, option. Those that meet a rival have others, and as many at most.
STEPS: Final = 6


def all_orders() -> Iterator[list[int]]:
    """Every order of the steps of two processes."""
    for mine in itertools.combinations(range(2 * STEPS), STEPS):
        yield [0 if at in mine else 1 for at in range(2 * STEPS)]


@pytest.mark.parametrize("other", CLAIMS)
@pytest.mark.parametrize("one", CLAIMS)
def test_of_two_exactly_one_gets_the_4_tuple_in_every_order(one: Claim, other: Claim) -> None:
    for order in all_orders():
        race = Race([Rival(one), Rival(other)])
        outcomes = race.run(order)
        assert outcomes.count("connected") == race.holders(FIRST) == 1, order


def test_toward_two_destinations_at_least_one_is_connected_in_every_order() -> None:
    seen = set()
    for order in all_orders():
        race = Race([Rival(claim), Rival(claim, SECOND)])
        outcomes = race.run(order)
        assert "connected" in outcomes, order
        # Neither has the other's 4-tuple: what keeps it off is passing.
        assert "occupied" not in outcomes
        seen.add(tuple(sorted(outcomes)))
    assert ("connected", "connected") in seen


def test_nobody_gets_a_4_tuple_that_is_taken_in_any_order() -> None:
    for order in all_orders():
        race = Race([Rival(claim), Rival(claim)])
        holder = ModelSocket(reuseaddr=True)
        race.kernel.bind(holder)
        race.kernel.connect(holder, FIRST)
        assert "connected" not in race.run(order)
        assert race.holders(FIRST) == 1


@settings(deadline=None)
@given(
    order=st.lists(st.integers(0, 3), max_size=4 * STEPS),
    claims=st.lists(st.sampled_from(CLAIMS), min_size=4, max_size=4),
)
def test_of_four_exactly_one_gets_it(order: list[int], claims: list[Claim]) -> None:
    race = Race([Rival(each) for each in claims])
    assert race.run(order).count("connected") == race.holders(FIRST) == 1


@settings(deadline=None)
@given(
    order=st.lists(st.integers(0, 2), max_size=3 * STEPS),
    victim=st.integers(0, 2),
    moment=st.integers(0, 3 * STEPS),
)
def test_who_is_killed_leaves_nothing(order: list[int], victim: int, moment: int) -> None:
    race = Race([Rival(claim)] * 3)
    outcomes = race.run(order, kill=(victim, moment))
    assert race.holders(FIRST) == sum(
        outcome == "connected" and not (number == victim and moment < len(order))
        for number, outcome in enumerate(outcomes)
    )
    assert race.holders(FIRST) <= 1
    # Neither lock nor port is stuck.
    assert Race([Rival(claim, SECOND)], race.kernel).run([]) == ["connected"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_one_of_its_protections_some_order_gives_the_4_tuple_to_both(variant: str) -> None:
    duplicates = 0
    for order in all_orders():
        race = Race([Rival(VARIANTS[variant])] * 2)
        race.run(order)
        duplicates += race.holders(FIRST) > 1
    assert duplicates


class TestOptions:
    """Sockets that a lookup does not find in the order in which they were bound."""

    RIVALS: Final = [
        Rival(function, FIRST, device, processor, mapped, HERE, (OTHER,))
        for function in (claim, claim_asked)
        for device in (0, OTHER)
        for processor in (-1, HERE)
        for mapped in (False, True)
    ]
    SERVICES: Final = [
        {"device": device, "processor": processor, "mapped": mapped}
        for device in (0, OTHER)
        for processor in (-1, HERE)
        for mapped in (False, True)
    ]

    #: More steps than any claim has.
    MOST: Final = 20

    @classmethod
    def stops(cls) -> Iterator[list[int]]:
        """Orders in which one stops, then the other; then the one ends, then the other."""
        for first, second in itertools.product(range(cls.MOST), repeat=2):
            yield [0] * first + [1] * second

    @pytest.mark.parametrize("other", RIVALS, ids=repr)
    @pytest.mark.parametrize("one", RIVALS, ids=repr)
    def test_two_never_have_one_4_tuple(self, one: Rival, other: Rival) -> None:
        for first in range(self.MOST):
            race = Race([one, other._replace(runs_on=THERE)])
            outcomes = race.run([0] * first + [1] * self.MOST)
            assert outcomes.count("connected") == race.holders(FIRST) <= 1, first

    @settings(deadline=None, max_examples=1000)
    @given(
        order=st.lists(st.integers(0, 2), max_size=60),
        rivals=st.lists(st.sampled_from(RIVALS), min_size=2, max_size=3),
        processors=st.lists(st.sampled_from([HERE, THERE]), min_size=3, max_size=3),
        services=st.lists(st.sampled_from(SERVICES), max_size=2),
    )
    def test_nor_do_three_beside_services(
        self,
        order: list[int],
        rivals: list[Rival],
        processors: list[int],
        services: list[dict[str, Any]],
    ) -> None:
        race = Race(
            [
                each._replace(runs_on=processor)
                for each, processor in zip(rivals, processors, strict=False)
            ]
        )
        for service in services:
            race.with_service(**service)
        outcomes = race.run(number for number in order if number < len(rivals))
        assert outcomes.count("connected") == race.holders(FIRST) <= 1

    @pytest.mark.parametrize("service", SERVICES, ids=str)
    @pytest.mark.parametrize("rival", RIVALS, ids=repr)
    def test_one_alone_has_a_port_beside_a_service_that_it_has_asked_for(
        self, rival: Rival, service: dict[str, Any]
    ) -> None:
        [outcome] = Race([rival]).with_service(**service).run([])
        assert (outcome == "connected") is (rival.claim is claim_asked)

    @pytest.mark.parametrize("options", SERVICES, ids=str)
    @pytest.mark.parametrize("rival", RIVALS, ids=repr)
    def test_nobody_has_a_4_tuple_that_is_taken(
        self, rival: Rival, options: dict[str, Any]
    ) -> None:
        race = Race([rival])
        holder = ModelSocket(reuseaddr=True, **options)
        race.kernel.bind(holder)
        race.kernel.connect(holder, FIRST)
        assert race.run([]) == ["occupied"]

    @pytest.mark.parametrize("service", SERVICES, ids=str)
    def test_two_that_ask_beside_a_service(self, service: dict[str, Any]) -> None:
        one = ASKING()
        for order in self.stops():
            race = Race([one, one]).with_service(**service)
            assert race.run(order).count("connected") == race.holders(FIRST) == 1, order


def nothing(*_: Any, **__: Any) -> bool:
    """Stand for a look at rivals that finds none."""
    return True


def on_one_device(*arguments: Any, **options: Any) -> None:
    """Look on the lookup's own device alone."""
    claim(*arguments, **{**options, "devices": ()})


def keeping_its_processor(sock: Any, *arguments: Any, **options: Any) -> None:
    """Leave SO_INCOMING_CPU as it is."""

    def getsockopt(level: int, option: int, size: int = 0) -> Any:
        unset = option == uapi.SO_INCOMING_CPU
        return -1 if unset else Process.getsockopt(sock, level, option, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sock, "getsockopt", getsockopt)
        claim_asked(sock, *arguments, **options)


def beside_anybody(*arguments: Any, **options: Any) -> None:
    """Take everybody who is not connected for a service."""
    VARIANTS["without comparison"](*arguments, **options)


@contextlib.contextmanager
def unlike_itself(**replaced: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(udp_connect, name, value)
        yield


@contextlib.contextmanager
def no_twin(*_: Any) -> Iterator[bytes]:
    """Stand for nobody."""
    yield b""


@pytest.mark.parametrize(
    "rivals, replaced",
    [
        # Each of two finds itself.
        ([ASKING()._replace(claim=on_one_device), ASKING(device=OTHER)], {}),
        ([ASKING(), ASKING(device=OTHER)], {"_alone_without_device": nothing}),
        ([ASKING(processor=HERE)._replace(claim=keeping_its_processor), ASKING()], {}),
        # Each takes the other for a service.
        ([ASKING(mapped=True), ASKING()], {"_ipv4_twin": no_twin}),
        ([Rival(beside_anybody), Rival(beside_anybody)], {}),
    ],
    ids=["devices", "no device", "processor", "twin", "order"],
)
def test_without_one_of_these_some_order_gives_it_to_both(
    rivals: list[Rival], replaced: dict[str, Any]
) -> None:
    duplicates = 0
    with unlike_itself(**replaced):
        for pair in (rivals, rivals[::-1]):
            for order in TestOptions.stops():
                race = Race([pair[0], pair[1]._replace(runs_on=THERE)])
                race.run(order)
                duplicates += race.holders(FIRST) > 1
    assert duplicates


def connected_first(process: Process, wanted: Filter) -> Sequence[SocketRecord]:
    """List the connected sockets before the others."""
    if wanted.states == 1 << uapi.TCP_CLOSE:
        process.connected = process.records(
            wanted._replace(states=1 << uapi.TCP_ESTABLISHED, destination_port=FIRST.port)
        )
        return process.records(wanted)
    return process.connected


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_rival_that_connects_between_the_two_lists_is_seen(*, spoilt: bool) -> None:
    duplicates = 0
    with pytest.MonkeyPatch.context() as patch:
        if spoilt:
            patch.setattr(socket_dump, "records", connected_first)
        for steps in itertools.product(range(5), range(6), range(8), range(2)):
            race = Race([Rival(claim_asked), Rival(claim_asked)])
            race.run(itertools.chain(*([at % 2] * count for at, count in enumerate(steps))))
            duplicates += race.holders(FIRST) > 1
    assert (duplicates > 0) is spoilt
