"""Which of several UDP sockets on one port a lookup finds, and in which order a dump lists them.

What tests/_connect/udp_model.py says of that, and the UDP section relies on.
"""

import contextlib
import functools
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from connectx.addresses import V4_MAPPED_TEXT, Endpoint
from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import TupleLookup
from connectx.linux.socket_dump import Filter, records
from connectx.sandbox.networks import Network
from tests._connect.udp_model import HERE, LO, OTHER, PORT, ModelSocket, UdpModel
from tests.kernel.raw import cookie

#: On the link of one of the devices. Nobody is at the other one.
HOST: Final = "10.1.0.1"
PEER: Final = Endpoint("10.1.0.9", 9000)
_HOST, _PEER = map(socket.inet_aton, (HOST, PEER.host))
#: A device that no socket is bound to.
THIRD: Final = 3


class Options(NamedTuple):
    """As those of `ModelSocket`; here: whether SO_INCOMING_CPU is the processor at hand."""

    device: int
    here: bool
    mapped: bool


EVERY: Final = [
    Options(device, here, mapped)
    for device in (0, LO, OTHER)
    for here in (False, True)
    for mapped in (False, True)
]


@pytest.fixture(autouse=True)
def _one_processor(network: Network) -> Iterator[None]:
    """Stay on one processor, in a namespace with three devices."""
    network.add_device_pair("one", "two")
    network.add_address(HOST, 24, "one")
    assert [socket.if_nametoindex(name) for name in ("lo", "two", "one")] == [LO, OTHER, THIRD]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def netlink(network: Network) -> Iterator[NetlinkSocket]:  # noqa: ARG001 -- in its namespace
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as made:
        yield made


def make(stack: contextlib.ExitStack, options: Options) -> socket.socket:
    family = socket.AF_INET6 if options.mapped else socket.AF_INET
    sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    if options.device:
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTOIFINDEX, options.device)
    if options.here:
        [processor] = os.sched_getaffinity(0)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_INCOMING_CPU, processor)
    return sock


def model_of(options: Options, *, reuseaddr: bool = True) -> ModelSocket:
    return ModelSocket(options.device, HERE if options.here else -1, options.mapped, reuseaddr)


def host(options: Options) -> str:
    return V4_MAPPED_TEXT * options.mapped + HOST


@pytest.mark.parametrize("older", EVERY, ids=str)
def test_who_is_found_and_in_which_order_they_are_listed(
    older: Options, netlink: NetlinkSocket
) -> None:
    for newer in EVERY:
        kernel = UdpModel()
        names = {}
        with contextlib.ExitStack() as stack:
            for options in (older, newer):
                sock, model = make(stack, options), model_of(options)
                sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
                sock.bind((host(options), PORT))
                kernel.bind(model)
                names[cookie(sock)] = model
            for peer in (None, PEER):
                if peer is not None:
                    sock.connect((V4_MAPPED_TEXT * newer.mapped + peer.host, peer.port))
                    kernel.connect(model, peer)
                for device in (0, LO, OTHER, THIRD):
                    record = lookup(device).find_record(netlink, PORT)
                    found = None if record is None else names[record.cookie]
                    assert found is kernel.lookup(PEER, device, HERE), (newer, device)
                for state, to in (uapi.TCP_CLOSE, None), (uapi.TCP_ESTABLISHED, PEER):
                    listed = [names[record.cookie] for record in records(netlink, those_in(state))]
                    assert listed == kernel.listed(connected_to=to)


@pytest.mark.parametrize("older", EVERY, ids=str)
@pytest.mark.parametrize("shared", list(itertools.product([False, True], repeat=2)), ids=str)
def test_who_may_bind(older: Options, shared: tuple[bool, bool]) -> None:
    for newer in EVERY:
        kernel = UdpModel()
        outcomes = []
        with contextlib.ExitStack() as stack:
            for options, reuseaddr in zip((older, newer), shared, strict=True):
                sock = make(stack, options)
                sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, reuseaddr)
                for bind in (
                    functools.partial(sock.bind, (host(options), PORT)),
                    functools.partial(kernel.bind, model_of(options, reuseaddr=reuseaddr)),
                ):
                    try:
                        bind()
                    except OSError as error:
                        outcomes.append(error.errno)
                    else:
                        outcomes.append(0)
        assert outcomes[::2] == outcomes[1::2], newer


def test_many_are_listed_from_the_newest_on(netlink: NetlinkSocket) -> None:
    """Over more than one datagram of a dump."""
    with contextlib.ExitStack() as stack:
        cookies = []
        for _ in range(600):
            sock = make(stack, EVERY[0])
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
            sock.bind((HOST, PORT))
            cookies.append(cookie(sock))
        listed = [record.cookie for record in records(netlink, those_in(uapi.TCP_CLOSE))]
        assert listed == cookies[::-1]


def lookup(device: int) -> TupleLookup:
    return TupleLookup(uapi.IPPROTO_UDP, uapi.AF_INET, _HOST, _PEER, PEER.port, device)


def those_in(state: int) -> Filter:
    return Filter(uapi.IPPROTO_UDP, 1 << state, _HOST, PORT, family=uapi.AF_INET)
