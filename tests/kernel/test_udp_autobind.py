"""What a plain UDP connect() or sendto() needs: a port that no socket has, on any address."""

import contextlib
import errno
import socket
from collections.abc import Callable

import pytest

from connectx.sandbox.networks import Network
from tests.kernel.raw import DATAGRAMS, FIRST, UDP, UDP6, Transport

LOW, HIGH = 20001, 20010
PORTS = HIGH - LOW + 1


def opened(
    transport: Transport, host: str, closing: contextlib.ExitStack, *, send: bool = False
) -> str:
    sock = closing.enter_context(transport.socket())
    try:
        if send:
            sock.sendto(b"", (host, FIRST))
        else:
            sock.connect((host, FIRST))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@pytest.fixture
def fill(closing: contextlib.ExitStack) -> Callable[..., int]:
    """Opens sockets, each to a destination of its own, until it fails; how many there are."""

    def fill(transport: Transport, *, send: bool = False) -> int:
        for number in range(PORTS + 1):
            host = f"127.0.1.{number}" if transport.family == socket.AF_INET else "::1"
            if (found := opened(transport, host, closing, send=send)) != "ok":
                assert found == "EAGAIN"
                return number
        return PORTS + 1

    return fill


@pytest.fixture
def bound(closing: contextlib.ExitStack) -> Callable[..., socket.socket]:
    def bound(host: str, port: int, *, v6only: bool = False) -> socket.socket:
        sock = closing.enter_context((UDP6 if ":" in host else UDP).socket())
        if v6only:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        return sock

    return bound


@pytest.fixture(autouse=True)
def _range(network: Network) -> None:
    network.port_range(LOW, HIGH)


@pytest.mark.parametrize("send", [False, True], ids=["connect", "sendto"])
@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
def test_one_port_each_whatever_the_destination(
    fill: Callable[..., int], transport: Transport, *, send: bool
) -> None:
    assert fill(transport, send=send) == PORTS


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
@pytest.mark.parametrize("host", ["127.0.0.9", "0.0.0.0", "::"])
def test_not_one_that_is_bound_on_another_address(
    fill: Callable[..., int], bound: Callable[..., socket.socket], transport: Transport, host: str
) -> None:
    for port in range(LOW, LOW + 3):
        bound(host, port)
    assert fill(transport) == PORTS - 3


@pytest.mark.parametrize("host, v6only", [("::", True), ("::1", False)])
def test_one_of_ipv6_only_does_not_matter_to_ipv4(
    fill: Callable[..., int], bound: Callable[..., socket.socket], host: str, *, v6only: bool
) -> None:
    """An address other than "::" counts as IPv6 only (inet6_bind)."""
    for port in range(LOW, LOW + 3):
        bound(host, port, v6only=v6only)
    assert fill(UDP) == PORTS
    assert fill(UDP6) == 0


@pytest.mark.parametrize(
    "holder, v6only, source, refused",
    [
        ("0.0.0.0", False, "127.0.0.1", True),
        ("0.0.0.0", False, "::1", False),
        ("::", False, "127.0.0.1", True),
        ("::", False, "::1", True),
        ("::", True, "127.0.0.1", False),
        ("::", True, "::1", True),
    ],
)
def test_whom_a_wildcard_shuts_out(
    bound: Callable[..., socket.socket], holder: str, source: str, *, v6only: bool, refused: bool
) -> None:
    bound(holder, LOW, v6only=v6only)
    if refused:
        with pytest.raises(OSError, match="in use"):
            bound(source, LOW)
    else:
        bound(source, LOW)
