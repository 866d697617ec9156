import contextlib
import errno
import socket

import pytest

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sockopts import set_so_reuseaddr
from connectx.sandbox.networks import Network
from tests.linux.sockets import Open


@pytest.fixture
def netlink(network: Network, closing: contextlib.ExitStack) -> NetlinkSocket:  # noqa: ARG001
    return closing.enter_context(NetlinkSocket(uapi.NETLINK_SOCK_DIAG))


@pytest.fixture
def open_socket(closing: contextlib.ExitStack) -> Open:
    """Returns a function that opens a socket, and binds and connects it if asked to."""

    def opened(
        protocol: int,
        source: tuple[str, int] | None = None,
        destination: tuple[str, int] | None = None,
        family: int | None = None,
    ) -> socket.socket:
        host = (source or destination or ("", 0))[0]
        family = family or (socket.AF_INET6 if ":" in host else socket.AF_INET)
        stream = protocol in {uapi.IPPROTO_TCP, uapi.IPPROTO_MPTCP}
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        try:
            sock = closing.enter_context(socket.socket(family, kind, protocol))
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            pytest.skip(f"kernel: no protocol {protocol}")
        set_so_reuseaddr(sock, on=True)
        if source:
            sock.bind(source)
        if destination:
            sock.connect(destination)
        return sock

    return opened
