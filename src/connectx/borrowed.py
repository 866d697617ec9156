"""A caller's socket: what is set on it, and how to leave it as it was found."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from connectx.addresses import PortRange
from connectx.linux import sockopts
from connectx.linux.disconnect import disconnect
from connectx.linux.uapi import IPPROTO_MPTCP
from connectx.network import options_of_socket
from connectx.requests import parse, with_scope_id

if TYPE_CHECKING:
    from connectx.addresses import Address
    from connectx.network import Options
    from connectx.requests import Request

_NO_WINDOW: Final = PortRange(0, 0)


class Borrowed:
    """What a socket was like when it was handed to us.

    family, type, proto: as integers.
    source: the address it was bound to without a port, or None.
    options: what else bears on its source.

    Raises TypeError for what is no socket, ValueError for one that is bound to a
    port or connected, and OSError as getsockname() does.
    """

    __slots__ = (
        "_name",
        "_reuse",
        "_sock",
        "_window",
        "family",
        "options",
        "proto",
        "source",
        "type",
    )

    def __init__(self, sock: socket.socket) -> None:
        if not isinstance(sock, socket.SocketType | socket.socket):
            raise TypeError(f"connectx() takes a socket, not {sock!r}")
        self._sock = sock
        self.family = int(sock.family)
        self.type = int(sock.type)
        self.proto = int(sock.proto)
        if self.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"connectx() takes AF_INET and AF_INET6 sockets, not {sock!r}")
        name = sock.getsockname()
        if name[1]:
            raise ValueError(
                f"the socket is bound to a port or connected already (getsockname() gives "
                f"{name!r}): connectx() takes one that is neither"
            )
        self._name: Address = name
        bound = any(socket.inet_pton(self.family, name[0]))
        self.source: Address | None = name if bound else None
        self._reuse = sockopts.get_so_reuseaddr(sock)
        self._window = _window(sock)
        self.options: Options = options_of_socket(
            sockopts.get_so_mark(sock),
            sockopts.get_so_bindtoifindex(sock),
            self._window if self._window != _NO_WINDOW else None,
        )

    def request(self, source: Address | None, destination: Address, strategy: str) -> Request:
        """What a call on this socket asks for; errors as `connectx.requests.parse`."""
        destination = with_scope_id(destination)
        source = with_scope_id(source) if source else source
        if self.source is not None and (source is None or not source[0]):
            # Its user has bound it to an address, without a port.
            source = (self.source[0], source[1] if source else 0, *self.source[2:])
        return parse(self.family, self.type, self.proto, strategy, source, destination)

    def release(self, sock: socket.socket) -> None:
        """Give the socket's port back, if bind() was not given it explicitly."""
        disconnect(sock)
        if self.options.interface:
            # connect(AF_UNSPEC) has cleared it.
            sockopts.set_so_bindtoifindex(sock, self.options.interface)

    def restore_window(self) -> None:
        """Set IP_LOCAL_PORT_RANGE as it was, so that it does not bind a later connect()."""
        if self._window is None:
            return
        try:
            sockopts.set_ip_local_port_range(self._sock, *self._window)
        except OSError as error:
            # MPTCP takes no such option any more once it is connected or about to be
            # (__mptcp_nmpc_sk); the window then binds nothing, for it cannot reconnect.
            if self.proto != IPPROTO_MPTCP or error.errno != errno.EINVAL:
                raise

    def restore(self) -> None:
        """After a failure: leave the socket unbound and its options as they were found.

        What cannot be undone is a port that bind() was given explicitly (see
        `connectx.linux.disconnect`), and for TCP a connection that came to nothing
        leaves the socket in the state that connect() would have left it in.
        """
        sock = self._sock
        if sock.fileno() < 0:
            return
        if self.type == socket.SOCK_DGRAM:
            self.release(sock)
        self.restore_window()
        sockopts.set_so_reuseaddr(sock, on=self._reuse)
        name = sock.getsockname()
        if not name[1] and name != self._name:
            # The option, which is on since we bound the source, makes this second
            # bind() take no port either.
            sockopts.set_ip_bind_address_no_port(sock, on=True)
            sock.bind(self._name)


def _window(sock: socket.socket) -> PortRange | None:
    """IP_LOCAL_PORT_RANGE, or None where the kernel does not know it."""
    try:
        return sockopts.get_ip_local_port_range(sock)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise
