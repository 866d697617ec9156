"""UDP sockets on one 4-tuple or one port of which some are bound to devices.

A socket that is bound to no device takes packets that arrive on any, so it meets every other one;
two that are bound to different devices do not meet.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import pytest

import connectx
from connectx import PortsExhausted, TupleInUse
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests import limits
from tests.api.calls import UDP_MAPPED, UDPLITE_MAPPED
from tests.kernel.raw import FIRST, SECOND, UDP, UDP6, UDPLITE, Transport

LOW: Final = 20000
#: No window reaches it, so that a caller's socket takes another way.
OUTSIDE: Final = 40000
LOCAL, LOCAL6 = "10.1.0.1", "2001:db8::1"

#: Arguments of setsockopt().
Options: TypeAlias = Sequence[tuple[int, int, int | bytes]]
Connect: TypeAlias = Callable[..., socket.socket]

TRANSPORTS: Final = [
    *(replace(each, source=LOCAL) for each in (UDP, UDPLITE)),
    replace(UDP6, source=LOCAL6),
    *(replace(each, source=f"::ffff:{LOCAL}") for each in (UDP_MAPPED, UDPLITE_MAPPED)),
]
every_transport = pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
#: "one" is the device of the source. IPv6 has no route to other hosts through "lo".
every_transport_and_device = pytest.mark.parametrize(
    "transport, device",
    [
        (transport, device)
        for transport in TRANSPORTS
        for device in ("one", "two", "lo")
        if transport.source != LOCAL6 or device != "lo"
    ],
    ids=str,
)


def to_device(name: str) -> Options:
    return [(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, name.encode())]


ANY_DEVICE: Final[Options] = []
#: The kernel prefers the socket where a packet is received on this processor.
HERE: Final[Options] = [
    (socket.SOL_SOCKET, uapi.SO_INCOMING_CPU, min(os.sched_getaffinity(0))),
]
TRANSPARENT: Final[Options] = [(uapi.IPPROTO_IP, uapi.IP_TRANSPARENT, 1)]


def make(transport: Transport, options: Options) -> socket.socket:
    sock = transport.socket()
    try:
        for level, option, value in options:
            sock.setsockopt(level, option, value)
    except BaseException:
        sock.close()
        raise
    return sock


def by_connectx(
    transport: Transport, options: Options, port: int, peer: int = FIRST, host: str = ""
) -> socket.socket:
    sock = make(transport, options)
    try:
        connectx.connectx(sock, (host or transport.source, port), (away(transport), peer))
    except BaseException:
        sock.close()
        raise
    return sock


def by_create_connection(
    transport: Transport, options: Options, port: int, peer: int = FIRST, host: str = ""
) -> socket.socket:
    return connectx.create_connection(
        (away(transport), peer),
        source_address=(host or transport.source, port),
        type=transport.type,
        proto=transport.protocol,
        socket_options=options or None,
    )


def by_system_calls(
    transport: Transport, options: Options, port: int, peer: int = FIRST, host: str = ""
) -> socket.socket:
    """As a program does that does not look who has the 4-tuple."""
    sock = make(transport, options)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host or transport.source, port))
    sock.connect((away(transport), peer))
    return sock


every_call = pytest.mark.parametrize("call", [by_connectx, by_create_connection])


def away(transport: Transport) -> str:
    """An address on the link of both devices, where nobody is."""
    return transport.source[:-1] + "9"


@pytest.fixture(autouse=True)
def _network(network: Network) -> Iterator[None]:
    network.port_range(LOW, LOW)
    network.add_device_pair("one", "two")
    for last, device in enumerate(("one", "two"), 1):
        network.add_address(f"10.1.0.{last}", 24, device)
        network.add_address(f"2001:db8::{last}", 64, device)
    # One processor, so that SO_INCOMING_CPU counts in each lookup.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@every_transport_and_device
@every_call
class TestTheirTuple:
    """A 4-tuple has one socket."""

    @pytest.mark.parametrize("former", [by_system_calls, by_connectx, by_create_connection])
    @pytest.mark.parametrize("port", [LOW, OUTSIDE])
    def test_is_not_taken_by_a_socket_without_a_device(
        self,
        transport: Transport,
        device: str,
        call: Connect,
        former: Connect,
        port: int,
        closing: contextlib.ExitStack,
    ) -> None:
        closing.enter_context(former(transport, to_device(device), port))
        with pytest.raises(TupleInUse):
            call(transport, ANY_DEVICE, port)
        # The port is shared.
        closing.enter_context(call(transport, ANY_DEVICE, port, SECOND))

    @pytest.mark.parametrize("former", [by_system_calls, by_connectx, by_create_connection])
    @pytest.mark.parametrize("port", [LOW, OUTSIDE])
    def test_nor_by_one_with_a_device_if_it_has_none(
        self,
        transport: Transport,
        device: str,
        call: Connect,
        former: Connect,
        port: int,
        closing: contextlib.ExitStack,
    ) -> None:
        closing.enter_context(former(transport, ANY_DEVICE, port))
        with pytest.raises(TupleInUse):
            call(transport, to_device(device), port)
        closing.enter_context(call(transport, to_device(device), port, SECOND))

    def test_is_no_free_port(
        self, transport: Transport, device: str, call: Connect, closing: contextlib.ExitStack
    ) -> None:
        closing.enter_context(by_system_calls(transport, to_device(device), LOW))
        with pytest.raises(PortsExhausted):
            call(transport, ANY_DEVICE, 0)
        closing.enter_context(call(transport, ANY_DEVICE, 0, SECOND))


@every_call
class TestOthers:
    @pytest.mark.parametrize("device", ["one", "two"])
    @pytest.mark.parametrize("transport", [replace(UDP, source=LOCAL)], ids=str)
    def test_a_source_that_is_not_local(
        self, transport: Transport, device: str, call: Connect, closing: contextlib.ExitStack
    ) -> None:
        for port in (LOW, OUTSIDE):
            closing.enter_context(
                call(transport, [*TRANSPARENT, *to_device(device)], port, host="203.0.113.5")
            )
            with pytest.raises(TupleInUse):
                call(transport, TRANSPARENT, port, host="203.0.113.5")

    @every_transport
    def test_a_device_that_has_just_come(
        self,
        transport: Transport,
        call: Connect,
        network: Network,
        closing: contextlib.ExitStack,
    ) -> None:
        for peer in (FIRST, SECOND):
            closing.enter_context(call(transport, ANY_DEVICE, LOW, peer))
        network.add_device_pair("three", "four")
        last = "2001:db8::3" if transport.source == LOCAL6 else "10.1.0.3"
        network.add_address(last, 64 if ":" in last else 24, "three")
        closing.enter_context(by_system_calls(transport, to_device("three"), LOW, 9100))
        with pytest.raises(TupleInUse):
            call(transport, ANY_DEVICE, LOW, 9100)

    @every_transport
    def test_two_devices_have_a_4_tuple_each(
        self, transport: Transport, call: Connect, closing: contextlib.ExitStack
    ) -> None:
        for device in ("one", "two"):
            closing.enter_context(call(transport, to_device(device), LOW))
            with pytest.raises(TupleInUse):
                call(transport, to_device(device), LOW)

    @every_transport
    def test_a_socket_that_is_closed_leaves_nothing(
        self, transport: Transport, call: Connect
    ) -> None:
        for options in (to_device("two"), ANY_DEVICE, HERE) * 2:
            for port in (LOW, OUTSIDE, 0):
                call(transport, options, port).close()


#: Services by what is set on them, all with SO_REUSEADDR.
SERVICES: Final = {
    "nothing more": ANY_DEVICE,
    "the route's device": to_device("one"),
    "another device": to_device("two"),
    "SO_INCOMING_CPU": HERE,
    "both": [*to_device("one"), *HERE],
}
every_service = pytest.mark.parametrize("options", SERVICES.values(), ids=SERVICES)


def serve(transport: Transport, options: Options, port: int, host: str = "") -> socket.socket:
    sock = make(transport, options)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host or transport.source, port))
    return sock


@every_transport
@every_service
@every_call
class TestBesideAService:
    @pytest.mark.parametrize("port", [LOW, OUTSIDE])
    @pytest.mark.parametrize("where", ["source", "wildcard"])
    @pytest.mark.parametrize(
        "ours", [ANY_DEVICE, to_device("one"), HERE], ids=["no device", "a device", "processor"]
    )
    def test_a_port_asked_for_is_had(
        self,
        transport: Transport,
        options: Options,
        call: Connect,
        port: int,
        where: str,
        ours: Options,
        closing: contextlib.ExitStack,
    ) -> None:
        host = transport.source if where == "source" else transport.wildcard
        closing.enter_context(serve(transport, options, port, host))
        for peer in (FIRST, SECOND):
            sock = closing.enter_context(call(transport, ours, port, peer))
            assert sock.getsockname()[:2] == (transport.source, port)
            with pytest.raises(TupleInUse):
                call(transport, ours, port, peer)
        assert [sock.getsockopt(level, option) for level, option, _ in ours if ours is HERE] == [
            value for *_, value in ours if ours is HERE
        ]

    @pytest.mark.parametrize("where", ["source", "wildcard"])
    def test_any_port_is_another(
        self,
        transport: Transport,
        options: Options,
        call: Connect,
        where: str,
        closing: contextlib.ExitStack,
    ) -> None:
        host = transport.source if where == "source" else transport.wildcard
        closing.enter_context(serve(transport, options, LOW, host))
        for ours in (ANY_DEVICE, to_device("one"), HERE):
            if options is SERVICES["another device"] and ours and ours is not HERE:
                continue  # they do not meet
            with pytest.raises(PortsExhausted):
                call(transport, ours, 0)


@every_service
@every_call
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (TRANSPORTS[0], replace(UDP_MAPPED, source=f"::ffff:{LOCAL}")),
        (TRANSPORTS[3], TRANSPORTS[0]),
        (TRANSPORTS[4], TRANSPORTS[1]),
    ],
    ids=str,
)
def test_a_service_with_a_socket_of_the_other_family(
    ours: Transport,
    theirs: Transport,
    options: Options,
    call: Connect,
    closing: contextlib.ExitStack,
) -> None:
    """IPv4 sockets, and IPv6 sockets with IPv4-mapped addresses."""
    for port in (LOW, OUTSIDE):
        closing.enter_context(serve(theirs, options, port))
        closing.enter_context(call(ours, ANY_DEVICE, port))
        for transport in (ours, theirs):
            with pytest.raises(TupleInUse):
                call(transport, ANY_DEVICE, port)


@pytest.mark.parametrize("options", [to_device("lo"), HERE], ids=["device", "processor"])
@pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED], ids=str)
def test_the_packets_of_the_peer_alone_are_taken_from_a_service(
    transport: Transport, options: Options, closing: contextlib.ExitStack
) -> None:
    service = closing.enter_context(serve(transport, options, LOW))
    peer = closing.enter_context(serve(transport, ANY_DEVICE, FIRST))
    stranger = closing.enter_context(serve(transport, ANY_DEVICE, SECOND))
    sock = closing.enter_context(
        connectx.create_connection(
            (transport.source, FIRST), source_address=(transport.source, LOW), type=transport.type
        )
    )
    peer.sendto(b"peer", (transport.source, LOW))
    stranger.sendto(b"stranger", (transport.source, LOW))
    assert limits.receive(sock, 9) == b"peer"
    assert limits.receive(service, 9) == b"stranger"
    sock.close()
    peer.sendto(b"again", (transport.source, LOW))
    assert limits.receive(service, 9) == b"again"
