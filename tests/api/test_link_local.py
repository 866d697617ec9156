"""IPv6 addresses that need a scope: as the fourth item, or behind a percent sign."""

import contextlib
import socket

import pytest

import connectx
from connectx import TupleInUse
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
