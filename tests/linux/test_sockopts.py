import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.addresses import PortRange
from connectx.linux import sockopts, uapi
from connectx.sandbox.networks import Network


class Setter(Protocol):
    def __call__(self, sock: socket.socket, /, *, on: bool) -> None: ...


FLAGS: list[tuple[Callable[[socket.socket], bool], Setter]] = [
    (sockopts.get_so_reuseaddr, sockopts.set_so_reuseaddr),
    (sockopts.get_ip_bind_address_no_port, sockopts.set_ip_bind_address_no_port),
    (sockopts.get_ip_freebind, sockopts.set_ip_freebind),
    (sockopts.get_ip_transparent, sockopts.set_ip_transparent),
    (sockopts.get_tcp_fastopen_connect, sockopts.set_tcp_fastopen_connect),
]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def sock(
    request: pytest.FixtureRequest,
    network: Network,  # noqa: ARG001
    closing: contextlib.ExitStack,
) -> socket.socket:
    return closing.enter_context(socket.socket(request.param, socket.SOCK_STREAM))


def require_port_range(sock: socket.socket) -> None:
    try:
        sockopts.get_ip_local_port_range(sock)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        pytest.skip("kernel: no IP_LOCAL_PORT_RANGE")


@pytest.mark.parametrize("get, set_", FLAGS, ids=lambda function: function.__name__)
def test_flags(sock: socket.socket, get: Callable[[socket.socket], bool], set_: Setter) -> None:
    assert get(sock) is False
    set_(sock, on=True)
    assert get(sock) is True
    set_(sock, on=False)
    assert get(sock) is False


def test_ipv6_v6only(network: Network) -> None:  # noqa: ARG001
    with socket.socket(socket.AF_INET6) as sock:
        assert sockopts.get_ipv6_v6only(sock) is False
        sockopts.set_ipv6_v6only(sock, on=True)
        assert sockopts.get_ipv6_v6only(sock) is True
        with pytest.raises(OSError, match="unreachable"):
            sock.connect(("::ffff:127.0.0.1", 9))
        sockopts.set_ipv6_v6only(sock, on=False)
        assert sockopts.get_ipv6_v6only(sock) is False


def test_so_cookie(sock: socket.socket) -> None:
    cookie = sockopts.get_so_cookie(sock)
    assert len(cookie) == 8
    assert cookie == sockopts.get_so_cookie(sock)
    with socket.socket() as other:
        assert sockopts.get_so_cookie(other) != cookie


def test_so_netns_cookie(sock: socket.socket) -> None:
    cookie = sockopts.get_so_netns_cookie(sock)
    if cookie is None:
        pytest.skip("kernel: no SO_NETNS_COOKIE")
    with socket.socket() as other:
        assert sockopts.get_so_netns_cookie(other) == cookie
    value = sock.getsockopt(uapi.SOL_SOCKET, uapi.SO_NETNS_COOKIE, 8)
    assert cookie.to_bytes(8, sys.byteorder) == value


class OldKernelSocket(socket.socket):
    """A socket of a kernel that lacks the option."""

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


def test_so_netns_cookie_of_an_old_kernel() -> None:
    with OldKernelSocket() as sock:
        assert sockopts.get_so_netns_cookie(sock) is None


def test_other_errors_of_so_netns_cookie_are_raised() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        sockopts.get_so_netns_cookie(sock)


@pytest.mark.parametrize("mark", [1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0])
def test_so_mark(sock: socket.socket, mark: int) -> None:
    assert sockopts.get_so_mark(sock) == 0
    sockopts.set_so_mark(sock, mark)
    assert sockopts.get_so_mark(sock) == mark


def test_so_bindtoifindex(sock: socket.socket) -> None:
    loopback = socket.if_nametoindex("lo")
    assert sockopts.get_so_bindtoifindex(sock) == 0
    sockopts.set_so_bindtoifindex(sock, loopback)
    assert sockopts.get_so_bindtoifindex(sock) == loopback
    assert sock.getsockopt(uapi.SOL_SOCKET, uapi.SO_BINDTODEVICE, 16) == b"lo\0"
    sockopts.set_so_bindtoifindex(sock, 0)
    assert sockopts.get_so_bindtoifindex(sock) == 0


@pytest.mark.parametrize("low, high", [(0, 0), (40000, 40000), (1, 65535), (0, 50000), (50000, 0)])
def test_ip_local_port_range(sock: socket.socket, low: int, high: int) -> None:
    require_port_range(sock)
    assert sockopts.get_ip_local_port_range(sock) == PortRange(0, 0)
    sockopts.set_ip_local_port_range(sock, low, high)
    assert sockopts.get_ip_local_port_range(sock) == PortRange(low, high)


def test_ip_local_port_range_in_the_wrong_order(sock: socket.socket) -> None:
    require_port_range(sock)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sockopts.set_ip_local_port_range(sock, 40001, 40000)


def test_ip_local_port_range_is_honoured(sock: socket.socket) -> None:
    require_port_range(sock)
    sockopts.set_ip_local_port_range(sock, 40007, 40007)
    sock.bind(("::1" if sock.family == socket.AF_INET6 else "127.0.0.1", 0))
    assert sock.getsockname()[1] == 40007


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_pack_port_range(low: int, high: int) -> None:
    assert int.from_bytes(sockopts.pack_port_range(low, high), sys.byteorder) == low | high << 16


def test_tcp_fastopen_connect_where_the_client_side_is_off(
    network: Network, sock: socket.socket
) -> None:
    network.sysctl("net.ipv4.tcp_fastopen", 0)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        sockopts.set_tcp_fastopen_connect(sock, on=True)
