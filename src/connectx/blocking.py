"""connectx() and create_connection(): the blocking driver."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from connectx import steps
from connectx.borrowed import Borrowed
from connectx.core.attempt import Attempt
from connectx.errors import ConnectxError
from connectx.linux.uapi import MSG_FASTOPEN
from connectx.linux.udp_claim import Contested, NotVisible
from connectx.network import Networks
from connectx.requests import parse, parse_literal, resolve_source
from connectx.tracked import STANDARD_SOCKET, TrackedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import Address
    from connectx.network import Options, Prepared
    from connectx.requests import Request

#: One for the process: what it holds belongs to namespaces and threads, and none
#: of it survives a fork (see connectx.network).
_networks: Final = Networks()

#: What socket.create_connection() has for "not given": None is a timeout of its own.
_DEFAULT_TIMEOUT: Final[Any] = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


def connectx(
    sock: socket.socket,
    source: Address | None,
    destination: Address,
    *,
    data: bytes | bytearray | memoryview = b"",
    strategy: str = "auto",
) -> int:
    """Connect a socket from a source of your choosing.

    Shares the source port with connections to other destinations, safely, and
    finds a free one as long as there is any. Otherwise it behaves as
    ``sock.connect(destination)`` does on the same socket: with its timeout, and
    in non-blocking mode with BlockingIOError (EINPROGRESS) once the connection is
    under way.

    sock: a stream or datagram socket (TCP, MPTCP, UDP, UDP-Lite; AF_INET, AF_INET6)
        that is neither bound to a port nor connected. What its owner has set on it
        (SO_MARK, SO_BINDTODEVICE, IP_FREEBIND, IP_LOCAL_PORT_RANGE, ...) is honoured
        and stays; SO_REUSEADDR is on afterwards.
    source: ``(host, port)``, for IPv6 also with flowinfo and scope_id. An empty or
        wildcard host lets the routing table choose, port 0 lets us; None is both.
    destination: the same with an IP address and a port from 1 to 65535.
    data: first bytes to send. TCP sends them with the SYN where TCP Fast Open is
        possible (Linux needs a cookie from an earlier connection), otherwise right
        after the handshake; in non-blocking mode without a cookie none are taken.
    strategy: how source ports are chosen, by name; see `connectx.core.strategies`.

    Returns how many bytes of data were taken, as send() does; 0 without data.

    Raises TypeError and ValueError for bad arguments, before anything is changed;
    PortsExhausted (EADDRNOTAVAIL, for UDP EAGAIN), TupleInUse, PortHeld,
    SourceNotLocal, RangeNotHonoured, NotSupported; and OSError as connect() does.
    After an error the socket is as it was found, except that a port outside of
    ip_local_port_range, or one that is in TIME_WAIT, takes an explicit bind, which
    Linux cannot undo: then close the socket.
    """
    with memoryview(data) as view:
        wanted = view.nbytes
    borrowed = Borrowed(sock)
    request = borrowed.request(source, destination, strategy)
    try:
        taken = _connect(
            sock,
            _networks.prepare(sock, request, borrowed.options),
            borrowed.release,
            data if wanted else b"",
        )
    except BlockingIOError as error:
        if error.errno == errno.EINPROGRESS:
            borrowed.restore_window()
        else:
            borrowed.restore()
        raise
    except BaseException:
        borrowed.restore()
        raise
    borrowed.restore_window()
    return taken


def create_connection(  # noqa: PLR0913 - socket.create_connection's signature, and more
    address: tuple[str | None, int | str],
    timeout: float | None = _DEFAULT_TIMEOUT,
    source_address: Address | None = None,
    *,
    all_errors: bool = False,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
    proto: int = 0,
    strategy: str = "auto",
) -> socket.socket:
    """Connect to an address and return the socket: socket.create_connection() with shared ports.

    address: ``(host, port)``; the host is a name or an IP address. The addresses of
        a name are tried in the resolver's order.
    timeout: seconds for each address, None to wait for as long as the kernel does;
        by default socket.getdefaulttimeout().
    source_address: ``(host, port)`` to connect from; an empty host lets the routing
        table choose, port 0 lets us.
    all_errors: raise an ExceptionGroup of what each address met with, not the last.
    type: SOCK_STREAM or SOCK_DGRAM, proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.
    strategy: how source ports are chosen, by name; see `connectx.core.strategies`.

    Raises as `connectx` does, and socket.gaierror for a name that does not resolve.
    """
    request = parse_literal(tuple(address), source_address, type, proto, strategy)
    if request is None:
        return _open_by_name(address, timeout, source_address, all_errors, type, proto, strategy)
    try:
        return _open(request, timeout)
    except OSError as error:
        if all_errors:
            raise ExceptionGroup("create_connection failed", [error]) from None
        raise


def _open_by_name(  # noqa: PLR0913 - create_connection's arguments
    address: tuple[str | None, int | str],
    timeout: float | None,
    source_address: Address | None,
    all_errors: bool,  # noqa: FBT001
    kind: int,
    proto: int,
    strategy: str,
) -> socket.socket:
    host, port = address
    errors: list[OSError] = []
    for family, _, _, _, destination in socket.getaddrinfo(host, port, 0, kind):
        try:
            source = resolve_source(source_address, family, kind)
            request = parse(family, kind, proto, strategy, source, destination)
            return _open(request, timeout)
        except OSError as error:
            errors.append(error)
    if not errors:
        raise OSError("getaddrinfo returns an empty list")
    try:
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors)
        raise errors[-1]
    finally:
        # The errors' tracebacks refer to this frame: break the cycle.
        errors.clear()


def _open(request: Request, timeout: float | None) -> socket.socket:
    """A new socket, connected; closed again if that fails."""
    # Looked up now, so that gevent's class is used where it has taken the place.
    factory = TrackedSocket if socket.socket is STANDARD_SOCKET else socket.socket
    sock = factory(request.family, request.type, request.proto)
    try:
        if timeout is not _DEFAULT_TIMEOUT:
            sock.settimeout(timeout)
        _connect(sock, _networks.prepare(sock, request), _replace)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(
    sock: socket.socket,
    prepared: Prepared,
    renew: Callable[[socket.socket], None],
    data: bytes | bytearray | memoryview = b"",
    *,
    again: bool = True,
) -> int:
    """Connect a socket; returns how many bytes of data were taken.

    renew: makes a socket that is bound to a port give it up.
    again: whether to try once more if what was known turns out to be out of date.
    """
    plan, request = prepared.plan, prepared.request
    # Nearly every attempt ends with its first proposal, and needs no table until then.
    port = plan.ledger.propose() if plan.proposes else 0
    attempt = None if port else Attempt(plan)
    taken = 0
    try:
        while True:
            try:
                if attempt is None:
                    connected = steps.put(sock, prepared, port)
                else:
                    connected = steps.advance(sock, prepared, attempt, renew)
                if not connected:
                    if data and request.stream:
                        taken = _connect_with(sock, request.address, data)
                    else:
                        sock.connect(request.address)
                break
            except (OSError, Contested, NotVisible) as error:
                if attempt is None:
                    attempt = Attempt(plan, port)
                steps.refused(sock, prepared, attempt, error, renew)
    except ConnectxError:
        steps.abandon(prepared, attempt, port)
        renewed = _networks.prepare_again(prepared) if again else None
        if renewed is None:
            raise
        renew(sock)
        return _connect(sock, renewed, renew, data, again=False)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.EINPROGRESS:
            steps.settle(sock, prepared, attempt, port)
        else:
            steps.abandon(prepared, attempt, port)
        raise
    steps.settle(sock, prepared, attempt, port)
    return sock.send(data) if data and not request.stream else taken


def _connect_with(sock: socket.socket, address: Address, data: bytes | bytearray | memoryview) -> int:
    """Connect a stream socket and send the first bytes, with the SYN where that is possible."""
    try:
        return sock.sendto(data, MSG_FASTOPEN, address)
    except BlockingIOError:
        # No cookie yet. A socket with a timeout waits in send() until the handshake
        # is done, a non-blocking one tells its user, as connect() would.
        if not sock.gettimeout():
            raise
        return sock.send(data)
    except OSError as error:
        # Clients may not (net.ipv4.tcp_fastopen), or MPTCP cannot (before 6.2).
        if error.errno != errno.EOPNOTSUPP:
            raise
    sock.connect(address)
    return sock.send(data)


def _replace(sock: socket.socket) -> None:
    """Put a new socket in the place of one that is stuck on a port, under the same descriptor."""
    with socket.socket(sock.family, sock.type, sock.proto) as fresh:
        fresh.settimeout(sock.gettimeout())
        os.dup2(fresh.fileno(), sock.fileno(), inheritable=False)
