"""IPv6 addresses that need a scope: as the fourth item, or behind a percent sign."""

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Callable

import pytest

import connectx
from connectx import TupleInUse, aio
from connectx.addresses import Address
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import is_stream, port_of
from tests.api.owner import LOW, PORTS, Owner
from tests.kernel.raw import FIRST, SECOND, TCP6, UDP6, UDPLITE6


@pytest.fixture(autouse=True)
def _address(network: Network, devices: tuple[int, int]) -> None:  # noqa: ARG001
    network.add_address("fe80::1", 64, "lo")


@pytest.mark.parametrize("form", ["4-tuple", "name", "number"])
@pytest.mark.parametrize("device", ["lo", "one"])
@pytest.mark.parametrize("with_source", [False, True], ids=["no source", "source address"])
@pytest.mark.parametrize("transport", [TCP6, UDP6, UDPLITE6], ids=str)
def test_every_port(owner: Owner, form: str, device: str, *, with_source: bool) -> None:
    for destination in (FIRST, SECOND):
        source = scoped("fe80::1", 0, device, form) if with_source else None
        assert owner.fill(scoped("fe80::9", destination, device, form), source) == PORTS


@pytest.mark.parametrize("form", ["4-tuple", "name", "number"])
@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_ports_asked_for(owner: Owner, form: str) -> None:
    for destination in (FIRST, SECOND):
        for port in (*PORTS, 30001):
            source = scoped("fe80::1", port, "one", form)
            sock = owner.connect(scoped("fe80::9", destination, "one", form), source)
            name = sock.getsockname()
            assert (name[0], name[1], name[3]) == (
                "fe80::1",
                port,
                socket.if_nametoindex("one"),
            )
    for port in (LOW, 30001):
        with pytest.raises(TupleInUse):
            owner.connect(
                scoped("fe80::9", FIRST, "one", form), scoped("fe80::1", port, "one", form)
            )


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_the_source_has_the_destinations_scope(owner: Owner) -> None:
    sock = owner.connect(scoped("fe80::9", FIRST, "two", "4-tuple"), ("fe80::1", 0))
    assert sock.getsockname()[3] == socket.if_nametoindex("two")


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_two_devices_are_two_destinations(owner: Owner) -> None:
    for device in ("one", "two"):
        assert owner.fill(scoped("fe80::9", FIRST, device, "4-tuple")) == PORTS


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_without_a_scope_it_is_refused_as_by_connect(owner: Owner) -> None:
    with owner.transport.socket() as plain, pytest.raises(OSError) as expected:  # noqa: PT011
        plain.connect(("fe80::9", FIRST))
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
        owner.connect(("fe80::9", FIRST))
    assert caught.value.errno == expected.value.errno
    assert type(caught.value) is type(expected.value)
    assert "fe80::9 is link-local, and its device (the scope) is missing" in str(caught.value)


def by_asyncio(to: Address, source: Address | None, kind: int) -> socket.socket:
    return asyncio.run(aio.create_connection(to[:2], source_address=source, type=kind))


def by_dialer(to: Address, source: Address | None, kind: int) -> socket.socket:
    host = source and source[0].partition("%")[0]
    return connectx.Dialer([host] if host else None).create_connection(to[:2], type=kind)


def by_create_connection(to: Address, source: Address | None, kind: int) -> socket.socket:
    return connectx.create_connection(to[:2], None, source, type=kind)


@pytest.mark.parametrize("call", [by_create_connection, by_asyncio, by_dialer])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("port", [0, LOW, 30001])
@pytest.mark.parametrize(
    "host, source, said",
    [
        ("fe80::9", "", "the destination fe80::9 is link-local"),
        ("fd00:1::9", "fe80::1", "the source fe80::1 is link-local"),
        ("fe80::9%one", "fe80::1%two", "different devices (scopes): one and two"),
    ],
)
def test_the_error_says_which_device_is_missing(
    call: Callable[[Address, Address | None, int], socket.socket],
    kind: int,
    port: int,
    host: str,
    source: str,
    said: str,
) -> None:
    if call is by_dialer and ("%" in source or port):
        # Its sources have the destination's scope, and any port.
        source, port = "", 0
        host, said = "fe80::9", "the destination fe80::9 is link-local"
    with pytest.raises(OSError, match=re.escape(said)) as caught:
        call((host, FIRST), (source, port), kind)
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, connectx.ConnectxError)


@pytest.mark.parametrize("transport", [UDP6, TCP6], ids=str)
@pytest.mark.parametrize("port", [0, LOW, 30001])
def test_a_source_with_a_scope_is_enough(owner: Owner, port: int) -> None:
    """Other sockets have the port: the lookup, too, has to know the device."""
    if port:
        owner.connect(("fe80::9%one", SECOND), ("fe80::1%one", port))
    sock = owner.connect(("fe80::9", FIRST), ("fe80::1%one", port))
    assert sock.getsockname()[3] == socket.if_nametoindex("one")
    if port:
        with pytest.raises(TupleInUse):
            owner.connect(("fe80::9", FIRST), ("fe80::1%one", port))


@pytest.mark.parametrize("form", ["4-tuple", "name"])
@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_data_comes_and_goes(
    owner: Owner, servers: Servers, closing: contextlib.ExitStack, form: str
) -> None:
    stream = is_stream(owner.transport)
    server = servers.listen("::", 9100) if stream else servers.receive("::", 9100)
    sock = closing.enter_context(owner.transport.socket())
    connectx.connectx(sock, scoped("fe80::1", 0, "lo", form), scoped("fe80::1", 9100, "lo", form))
    sock.send(b"there")
    if stream:
        accepted, peer = limits.accept(server)
        with accepted:
            assert limits.receive(accepted, 16) == b"there"
    else:
        data, peer = limits.receive_from(server, 16)
        assert data == b"there"
    assert peer[0] == "fe80::1"
    assert peer[1] == port_of(sock)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("source", [None, ("fe80::1%lo", 0), ("fe80::1%lo", LOW), ("", LOW)])
@pytest.mark.parametrize("transport", [TCP6], ids=str)
def test_create_connection_takes_the_percent_sign(
    owner: Owner,  # noqa: ARG001 -- sets the range
    servers: Servers,
    closing: contextlib.ExitStack,
    source: Address | None,
    kind: int,
) -> None:
    servers.listen("::", 9100)
    sock = closing.enter_context(
        connectx.create_connection(("fe80::1%lo", 9100), source_address=source, type=kind)
    )
    lo = socket.if_nametoindex("lo")
    assert sock.getpeername() == ("fe80::1", 9100, 0, lo)
    assert sock.getsockname()[0] == "fe80::1"
    assert sock.getsockname()[1] in ([LOW] if source and source[1] else PORTS)


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_an_unknown_device(owner: Owner) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        owner.connect(("fe80::9%nowhere", FIRST))


def scoped(host: str, port: int, device: str, form: str) -> Address:
    index = socket.if_nametoindex(device)
    if form == "4-tuple":
        return (host, port, 0, index)
    return (f"{host}%{device if form == 'name' else index}", port)
