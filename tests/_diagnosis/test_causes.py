"""From counted sockets to causes, and from causes to advice."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectx._diagnosis import causes
from connectx._diagnosis.causes import Cause, advise
from connectx._diagnosis.facts import Census
from connectx.addresses import Endpoint, FourTuple, PortRange

PORTS: Final = PortRange(32768, 60999)
CAUSES: Final = [value for value in vars(causes).values() if isinstance(value, Cause)]

counts = st.integers(0, 1000)
censuses = st.builds(
    lambda connected, time_wait, held, reserved, free: Census(
        PortRange(1, max(1, connected + time_wait + held + reserved + free)),
        connected,
        time_wait,
        held,
        reserved,
    ),
    counts,
    counts,
    counts,
    counts,
    counts,
)


def subject(protocol: str, source: str = "192.0.2.7") -> FourTuple:
    return FourTuple(protocol, Endpoint(source, 0), Endpoint("198.51.100.9", 443))


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_every_cause_says_what_helps(cause: Cause) -> None:
    assert cause.summary.endswith(".")
    assert cause.remedies
    assert all(each.text and not each.text.endswith(".") for each in cause.remedies)


def test_causes_are_told_apart() -> None:
    assert len({cause.summary for cause in CAUSES}) == len(CAUSES)


def test_of_the_causes_of_eaddrnotavail_the_first_six_are_exhaustion() -> None:
    of_exhaustion = [cause in causes.OF_EXHAUSTION for cause in causes.OF_EADDRNOTAVAIL]
    assert of_exhaustion == [True] * 6 + [False] * 4


@settings(deadline=None)
@given(censuses)
def test_the_greatest_share_comes_first_and_none_is_without_ports(census: Census) -> None:
    found = census.by_cause(stream=True)
    share = {
        causes.FREED: census.free,
        causes.CONNECTED: census.connected,
        causes.TIME_WAIT: census.time_wait,
        causes.HELD: census.held,
        causes.RESERVED: census.reserved,
    }
    assert all(count == share[cause] for cause, count in found)
    assert [count for _, count in found] == sorted(
        (count for count in share.values() if count), reverse=True
    )


def test_for_datagrams_the_advice_about_held_ports_is_another() -> None:
    census = Census(PORTS, connected=0, time_wait=0, held=28232, reserved=0)
    assert census.by_cause(stream=True) == [(causes.HELD, 28232)]
    assert census.by_cause(stream=False) == [(causes.HELD_DATAGRAM, 28232)]


class TestDescription:
    CENSUS: Final = Census(PORTS, connected=28000, time_wait=100, held=30, reserved=2)

    @pytest.mark.parametrize("protocol", ["tcp", "mptcp"])
    def test_of_streams(self, protocol: str) -> None:
        assert self.CENSUS.describe(subject(protocol)) == (
            "From 192.0.2.7 to 198.51.100.9:443, the range 32768-60999 holds 28,232 ports: "
            "28,000 connected, 100 in TIME_WAIT, 30 held by listeners or exclusive binds, "
            "2 reserved, 100 free now."
        )

    @pytest.mark.parametrize("protocol", ["udp", "udplite"])
    def test_datagrams_have_no_time_wait(self, protocol: str) -> None:
        assert "TIME_WAIT" not in self.CENSUS.describe(subject(protocol))


def test_advice_is_a_line_for_each_cause_and_each_remedy() -> None:
    lines = advise([causes.CONNECTED, causes.RESERVED]).splitlines()
    assert lines[0] == causes.CONNECTED.summary
    assert lines[-2] == causes.RESERVED.summary
    assert lines[-1] == f"  - {causes.RESERVED.remedies[0].text}"
    assert len(lines) == 2 + len(causes.CONNECTED.remedies) + len(causes.RESERVED.remedies)
