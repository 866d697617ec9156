"""What is kept of many destinations: so much for each that is open, and so much in all."""

import gc
import itertools
import socket
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from typing import Final

import pytest

import connectx
from connectx import Dialer
from connectx._connect.namespace import MOST_PLANS, NAMESPACES
from connectx._connect.rest import MOST_FEW
from connectx._dial.connecting import _MOST_TARGETS
from connectx._dial.slots import _FORGOTTEN_AT_ONCE, _MOST_IDLE
from connectx.sandbox.networks import Network

Connect = Callable[[tuple[str, int]], socket.socket]

OPEN: Final = 400
MANY: Final = 6_000


def destinations(count: int) -> list[tuple[str, int]]:
    first = int(IPv4Address("127.1.0.0"))
    return [(str(IPv4Address(first + number)), 9000) for number in range(count)]


def by_create_connection() -> Connect:
    return partial(connectx.create_connection, type=socket.SOCK_DGRAM)


def by_dialer() -> Connect:
    return partial(Dialer().create_connection, type=socket.SOCK_DGRAM)


@pytest.mark.parametrize("way, most", [(by_create_connection, 1_200), (by_dialer, 2_300)])
def test_an_open_destination_takes_so_many_octets(
    network: Network, closing: ExitStack, way: Callable[[], Connect], most: int
) -> None:
    """Beside the socket: its ledger, and its plan and request, which are kept of few."""
    del network
    connect = way()
    everything = destinations(OPEN)
    connect(everything[0]).close()
    with ExitStack() as bare:
        tracemalloc.start()
        try:
            for _ in everything:
                bare.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets = allocated()
        finally:
            tracemalloc.stop()
    tracemalloc.start()
    try:
        for each in everything:
            closing.enter_context(connect(each))
        assert (allocated() - sockets) / OPEN < most
    finally:
        tracemalloc.stop()


def allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("way", [by_create_connection, by_dialer])
def test_of_closed_ones_so_many_are_kept_in_all(
    network: Network, way: Callable[[], Connect]
) -> None:
    del network
    connect = way()
    everything = destinations(MANY)
    connect(everything[0]).close()
    gc.collect()
    before = len(gc.get_objects())
    for each in everything:
        connect(each).close()
    namespace = NAMESPACES.here()
    assert len(namespace.plans) <= MOST_PLANS
    assert sum(map(len, namespace._shelves.values())) <= MOST_PLANS
    assert len(namespace._rest.few) + len(namespace._rest.former) <= 2 * MOST_FEW
    assert len(namespace._rest) == 0
    gc.collect()
    # A plan with its ledger and its request, a target, a place: each of some objects.
    bound = 8 * (MOST_PLANS + _MOST_TARGETS + _MOST_IDLE + _FORGOTTEN_AT_ONCE)
    assert len(gc.get_objects()) - before < bound < 4 * MANY


def test_a_dialer_keeps_few_of_those_that_are_closed(network: Network) -> None:
    del network
    to = Dialer()
    for each in itertools.islice(itertools.cycle(destinations(MANY)), 2 * MANY):
        to.create_connection(each, type=socket.SOCK_DGRAM).close()
        assert len(to._policy.open.destinations) <= _MOST_IDLE + _FORGOTTEN_AT_ONCE
    assert len(to._policy.targets) <= _MOST_TARGETS
