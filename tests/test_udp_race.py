"""Many processes on the same UDP ports: no 4-tuple is ever given to two of them."""

import contextlib
from typing import Final

import pytest

import connectx
from connectx.addresses import PortRange
from connectx.testing.namespaces import Network
from tests.race.competition import (
    DESTINATIONS,
    HOST,
    Competition,
    Connect,
    by_connectx,
    by_create_connection,
    replace_claim,
)
from tests.race.variants import VARIANTS

PORTS: Final = PortRange(20000, 20015)
TUPLES: Final = set(range(len(DESTINATIONS) * PORTS.size))


@pytest.fixture(autouse=True)
def _sixteen_ports(network: Network) -> None:
    network.port_range(*PORTS)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param((by_create_connection,), id="create_connection"),
        pytest.param((by_connectx,), id="connectx"),
        pytest.param((by_create_connection, by_connectx), id="both"),
    ],
)
def test_no_4_tuple_has_two_owners(ways: tuple[Connect, ...]) -> None:
    competition = Competition(PORTS, ways=ways, lives=3, rounds=1500)
    result = competition.run()
    print(result.opened, result.killed)
    assert result.duplicates == 0
    assert result.killed == 24
    assert result.used == TUPLES
    assert result.in_the_kernel == dict.fromkeys(result.in_the_end, 1)
    # Whoever was killed has left neither port nor lock behind.
    with contextlib.ExitStack() as stack:
        for destination in DESTINATIONS:
            for _ in range(PORTS.size):
                stack.enter_context(by_create_connection((HOST, 0), destination))
            with pytest.raises(connectx.PortsExhausted):
                by_create_connection((HOST, 0), destination)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_one_of_its_protections_there_are_two_owners(variant: str) -> None:
    competition = Competition(PORTS, rounds=1500)
    result = competition.run(lambda: replace_claim(VARIANTS[variant]))
    print(variant, result.opened, result.duplicates)
    assert result.duplicates > 0
