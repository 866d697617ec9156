"""A caller's socket: what is set on it, and how to leave it as it was found."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final, TypeVar

from connectx._connect.namespace import options_of_socket
from connectx._connect.request import parse, require_served, with_scope_id
from connectx.addresses import PortRange
from connectx.linux import sockopts
from connectx.linux.disconnect import disconnect, make_ready
from connectx.linux.uapi import IPPROTO_MPTCP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectx._connect.namespace import Options
    from connectx._connect.request import Request
    from connectx.addresses import Address

_T = TypeVar("_T")

_NO_WINDOW: Final = PortRange(0, 0)


class Borrowed:
    """What a socket was like when it was handed to us.

    options: what is set on it that bears on its source.

    ports: the ports to stay within, whatever its own window is; None for that.

    Raises TypeError for what is no socket, ValueError for one that is bound to a
    port or connected, and OSError as getsockname() does.
    """

    __slots__ = (
        "_family",
        "_kind",
        "_name",
        "_no_port",
        "_proto",
        "_reuse",
        "_window",
        "options",
        "sock",
    )

    def __init__(self, sock: socket.socket, ports: PortRange | None = None) -> None:
        if not isinstance(sock, socket.SocketType | socket.socket):
            raise TypeError(f"connectx() takes a socket, not {sock!r}")
        self.sock = sock
        self._family = int(sock.family)
        self._kind = int(sock.type)
        self._proto = int(sock.proto)
        require_served(self._family, self._kind, self._proto)
        if self._kind == socket.SOCK_DGRAM:
            make_ready()
        self._no_port = _if_known(sockopts.get_ip_bind_address_no_port, sock)
        self._name: Address = self._unbound_name()
        self._reuse = sockopts.get_so_reuseaddr(sock)
        self._window = _if_known(sockopts.get_ip_local_port_range, sock)
        self.options: Options = options_of_socket(
            sockopts.get_so_mark(sock),
            sockopts.get_so_bindtoifindex(sock),
            ports or (self._window if self._window != _NO_WINDOW else None),
        )

    def request(self, source: Address | None, destination: Address, strategy: str) -> Request:
        """What a call on this socket asks for; errors as `connectx._connect.request.parse`."""
        destination = with_scope_id(destination)
        if source is not None:
            source = with_scope_id(source)
        if any(socket.inet_pton(self._family, self._name[0])):
            # Its user has bound it to an address, without a port.
            if source is None:
                source = self._name
            elif isinstance(source, tuple) and len(source) > 1 and not source[0]:
                source = (self._name[0], source[1], *self._name[2:])
        request = parse(self._family, self._kind, self._proto, strategy, source, destination)
        if self._family != request.wire_family and sockopts.get_ipv6_v6only(self.sock):
            # bind() would say the one, connect() the other.
            number = errno.EINVAL if request.source.host else errno.ENETUNREACH
            raise OSError(number, "IPV6_V6ONLY is set, and the destination is IPv4")
        return request

    def begin(self) -> None:
        """Set what a claim of a UDP port needs, and cannot do each time."""
        if self._kind == socket.SOCK_DGRAM and self._no_port:
            # The lock is on a port, so bind() has to take one.
            sockopts.set_ip_bind_address_no_port(self.sock, on=False)

    def release(self, sock: socket.socket) -> None:
        """Give the socket's port back, if bind() was not given it explicitly."""
        disconnect(sock)
        if self.options.interface:
            # connect(AF_UNSPEC) has cleared it.
            sockopts.set_so_bindtoifindex(sock, self.options.interface)

    def connected(self) -> None:
        """Set back what only finding a port has needed, so that it binds no later connect()."""
        if self._kind == socket.SOCK_DGRAM and self._no_port:
            sockopts.set_ip_bind_address_no_port(self.sock, on=True)
        self._restore_window()

    def restore(self) -> None:
        """After a failure: leave the socket unbound and its options as they were found.

        Two things cannot be undone: a port that bind() was given explicitly (see
        `connectx.linux.disconnect`), and, without CAP_NET_RAW, the device that a
        link-local source has bound a stream socket to.
        """
        sock = self.sock
        if sock.fileno() < 0:
            return
        if self._kind == socket.SOCK_DGRAM:
            self.release(sock)
        self._restore_window()
        with self._unless_mptcp_is_past_it():
            sockopts.set_so_reuseaddr(sock, on=self._reuse)
        name = sock.getsockname()
        if name[1] and self._kind == socket.SOCK_STREAM:
            self._takes_a_bind(self._name)
        elif not name[1] and name != self._name:
            # With the option this second bind() takes no port either.
            sockopts.set_ip_bind_address_no_port(sock, on=True)
            sock.bind(self._name)
        if self._no_port is not None:
            with self._unless_mptcp_is_past_it():
                sockopts.set_ip_bind_address_no_port(sock, on=self._no_port)
        if sockopts.get_so_bindtoifindex(sock) != self.options.interface:
            with contextlib.suppress(PermissionError):
                sockopts.set_so_bindtoifindex(sock, self.options.interface)

    def _unbound_name(self) -> Address:
        """getsockname() of a socket without a port; ValueError for one that has one."""
        sock = self.sock
        name: Address = sock.getsockname()
        if not name[1]:
            return name
        if self._kind == socket.SOCK_STREAM and self._takes_a_bind(name):
            return sock.getsockname()  # type: ignore[no-any-return]
        raise ValueError(
            f"the socket is bound to a port or connected already (getsockname() gives {name!r}): "
            "connectx() takes one that is neither"
        )

    def _takes_a_bind(self, name: Address) -> bool:
        """Whether a stream socket that shows a port has in truth given it up.

        After a refused connection it goes on showing it. An unbound socket takes this
        bind() and forgets the port; another refuses it, or MPTCP the option before it,
        with EINVAL before anything is changed (__inet_bind).
        """
        try:
            sockopts.set_ip_bind_address_no_port(self.sock, on=True)
            self.sock.bind((name[0], 0, *name[2:]))
        except OSError as error:
            # MPTCP does not know the option before 6.8: there is no way to tell.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return False
        finally:
            if self._no_port is not None:
                with self._unless_mptcp_is_past_it():
                    sockopts.set_ip_bind_address_no_port(self.sock, on=self._no_port)
        return True

    def _restore_window(self) -> None:
        if self._window is not None:
            with self._unless_mptcp_is_past_it():
                sockopts.set_ip_local_port_range(self.sock, *self._window)

    @contextlib.contextmanager
    def _unless_mptcp_is_past_it(self) -> Iterator[None]:
        """Let pass that MPTCP takes no such options once it is connecting (__mptcp_nmpc_sk).

        They have no meaning for it any more then: it cannot connect again.
        """
        try:
            yield
        except OSError as error:
            if self._proto != IPPROTO_MPTCP or error.errno != errno.EINVAL:
                raise


def _if_known(getter: Callable[[socket.socket], _T], sock: socket.socket) -> _T | None:
    """What an option is set to, or None where this kernel does not know it on such a socket."""
    try:
        return getter(sock)
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            return None
        raise
