"""connectx() and create_connection(): the blocking driver."""

from __future__ import annotations

import errno
import math
import os
import socket
from typing import TYPE_CHECKING, Any, Final, cast

from connectx._connect import connection as steps
from connectx._connect.attempt import Attempt
from connectx._connect.callers_socket import Borrowed
from connectx._connect.connection import Due
from connectx._connect.namespace import NETWORKS
from connectx._connect.own_socket import STANDARD_SOCKET, TrackedSocket
from connectx._connect.request import check_forms, parse, parse_literal, resolve_source
from connectx._connect.techniques import discard, offer, replace
from connectx._connect.udp_lock import Contested, NotVisible, claim
from connectx.errors import ConnectxError, RangeNotHonoured
from connectx.linux.sockopts import set_ip_freebind
from connectx.linux.uapi import MSG_FASTOPEN, SO_ERROR, SOL_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.connection import Watch
    from connectx._connect.namespace import Options, Prepared
    from connectx._connect.request import Request
    from connectx.addresses import Address

#: What socket.create_connection() has for "not given": None is a timeout of its own.
DEFAULT_TIMEOUT: Final[Any] = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # noqa: SLF001 - callers hand it on to us


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
    strategy: how source ports are chosen, by name; see `connectx._connect.strategies`.

    Returns how many bytes of data were taken, as send() does; 0 without data.

    Raises TypeError and ValueError for bad arguments, before anything is changed;
    PortsExhausted (EADDRNOTAVAIL, for UDP EAGAIN), TupleInUse, PortHeld,
    SourceNotLocal, RangeNotHonoured, NotSupported; and OSError as connect() does.
    After an error the socket is as it was found, with two exceptions; close it then.
    After a timeout or an interrupt TCP goes on connecting, as after connect(). And a
    port that was bound explicitly stays bound, which Linux cannot undo: a TCP port
    outside of ip_local_port_range or in TIME_WAIT, and before Linux 6.3 any UDP port
    whose connect() or first data failed.
    """
    borrowed = Borrowed(sock)
    return connect_borrowed(borrowed, borrowed.request(source, destination, strategy), data)


def connect_borrowed(
    borrowed: Borrowed,
    request: Request,
    data: bytes | bytearray | memoryview = b"",
    watch: Watch | None = None,
) -> int:
    """The same for arguments that have been checked."""
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise ValueError("data is not contiguous in memory: copy it with bytes()")
        wanted = view.nbytes
    sock = borrowed.sock
    try:
        borrowed.begin()
        prepared = NETWORKS.prepare(sock, request, borrowed.options)
        taken = _connect(
            sock,
            prepared,
            Attempt(prepared.plan),
            borrowed.release,
            data if wanted else b"",
            watch=watch,
        )
    except BlockingIOError as error:
        if error.errno == errno.EINPROGRESS:
            borrowed.connected()
        else:
            borrowed.restore()
        raise
    except BaseException:
        borrowed.restore()
        raise
    borrowed.connected()
    return taken


def create_connection(
    address: tuple[str | None, int | str],
    timeout: float | None = DEFAULT_TIMEOUT,
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
    strategy: how source ports are chosen, by name; see `connectx._connect.strategies`.

    Raises as `connectx` does, and socket.gaierror for a name that does not resolve.
    """
    try:
        request = parse_literal(address, source_address, type, proto, strategy)
    except TypeError:
        # A cache cannot hold a list, and does not say whose it is.
        address = cast("tuple[str | None, int | str]", tuple(address))
        check_forms(address, source_address, strategy, resolved=True)
        request = parse_literal(address, source_address, type, proto, strategy)
    if request is None or all_errors:
        return _create_any(address, timeout, source_address, all_errors, type, proto, strategy)
    return open_connection(request, timeout)


def open_connection(  # noqa: C901 - in parts it would take a tenth longer
    request: Request,
    timeout: float | None = DEFAULT_TIMEOUT,
    options: Options | None = None,
    watch: Watch | None = None,
) -> socket.socket:
    """The same for one address, and for options that a new socket is to have.

    options: must be replaceable; None for NEW_SOCKET.
    watch: is told how it goes.
    """
    # Looked up now, so that gevent's class is used where it has taken the place.
    sock: socket.socket
    tracked = None
    if socket.socket is STANDARD_SOCKET:
        sock = tracked = TrackedSocket(request.family, request.type, request.proto)
    else:
        sock = socket.socket(request.family, request.type, request.proto)
    try:
        if timeout is not DEFAULT_TIMEOUT:
            sock.settimeout(timeout)
        if options is not None and options.freebind:
            set_ip_freebind(sock, on=True)
        prepared = NETWORKS.prepare(sock, request, options)
        plan = prepared.plan
        ledger = plan.opening
        port = 0
        if (
            ledger is not None
            and tracked is not None
            # Whether it is honoured has to be seen.
            and (options is None or options.ports is None)
            and (watch is None or not watch.in_line)
        ):
            try:
                port = ledger.drawn.pop()
            except IndexError:
                port = ledger.propose()
        if not port or ledger is None or tracked is None:
            _connect(sock, prepared, Attempt(plan), replace, watch=watch)
            return sock
        # Nearly every attempt ends with its first proposal. That one is made here,
        # without an Attempt, whose table would cost as much as two system calls.
        tracked.ledger = ledger
        tracked.ledger_port = port
        try:
            if request.stream:
                offer(sock, prepared, port)
                sock.connect(request.address)
            else:
                network = prepared.network
                try:
                    netlink = network.sockets.diag
                except AttributeError:
                    netlink = network.diag
                claim(
                    sock,
                    prepared.lookup,
                    netlink,
                    # Not unpacked, which would take twice the time.
                    (prepared.host, port) + prepared.suffix,  # type: ignore[arg-type] # noqa: RUF005
                    request.address,
                )
        except (OSError, Contested, NotVisible) as error:
            tracked.ledger = None
            _connect(sock, prepared, Attempt(plan, port), replace, opening=error, watch=watch)
    except BaseException:
        discard(sock)
        raise
    return sock


def _create_any(
    address: tuple[str | None, int | str],
    timeout: float | None,
    source_address: Address | None,
    all_errors: bool,  # noqa: FBT001
    kind: int,
    proto: int,
    strategy: str,
) -> socket.socket:
    """The same for a name: try its addresses in turn."""
    host, port = address[:2]
    # Of an IPv6 address with flowinfo and scope_id, which getaddrinfo() does not take.
    more = cast("tuple[int, ...]", address[2:])
    errors: list[OSError] = []
    for family, _, _, _, destination in socket.getaddrinfo(host, port, 0, kind):
        try:
            source = resolve_source(source_address, family, kind)
            to = (*destination[:2], *(more or destination[2:]))
            return open_connection(parse(0, kind, proto, strategy, source, to), timeout)
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


def _connect(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    renew: Callable[[socket.socket], None],
    data: bytes | bytearray | memoryview = b"",
    *,
    opening: OSError | Contested | NotVisible | None = None,
    again: bool = True,
    watch: Watch | None = None,
) -> int:
    """Connect a socket; returns how many bytes of data were taken.

    renew: makes a socket that is bound to a port give it up.
    opening: why the attempt's first proposal has failed, if that was made already.
    again: whether to try once more if what was known turns out to be out of date.
    watch: is told how it goes.
    """
    try:
        taken = _go_through(sock, prepared, attempt, renew, data, opening, watch)
    except ConnectxError as error:
        attempt.abandon()
        if isinstance(error, RangeNotHonoured):
            # Connected, but from a port that nobody asked for.
            renew(sock)
        renewed = NETWORKS.prepare_again(prepared) if again else None
        if renewed is None:
            raise
        renew(sock)
        return _connect(sock, renewed, Attempt(renewed.plan), renew, data, again=False, watch=watch)
    except BaseException as error:
        if isinstance(error, BlockingIOError) and error.errno == errno.EINPROGRESS:
            steps.settle(sock, prepared, attempt)
        else:
            attempt.abandon()
        raise
    finally:
        # Its traceback refers to this frame, or will: break the cycle.
        del opening
    return sock.send(data) if data and not prepared.request.stream else taken


def _go_through(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    renew: Callable[[socket.socket], None],
    data: bytes | bytearray | memoryview,
    opening: OSError | Contested | NotVisible | None,
    watch: Watch | None,
) -> int:
    """Do as the attempt says until the socket is connected; arguments as for `_connect`."""
    try:
        if opening is not None and not steps.refused(sock, prepared, attempt, opening, renew):
            raise opening
    finally:
        del opening
    taken = 0
    while True:
        try:
            due = steps.advance(sock, prepared, attempt, renew)
            if due is Due.SURVEY:
                attempt.feed(steps.survey(prepared))
                continue
            if due is Due.CONNECT:
                if watch is None or not watch.in_line or data or sock.gettimeout() == 0:
                    taken = _connect_with(sock, prepared.request, data)
                else:
                    _connect_telling(sock, prepared.request.address, watch)
            break
        except (OSError, Contested, NotVisible) as error:
            if not steps.refused(sock, prepared, attempt, error, renew):
                raise
    steps.settle(sock, prepared, attempt)
    if watch is not None:
        watch.retried(attempt.failures)
    return taken


def _connect_telling(sock: socket.socket, address: Address, watch: Watch) -> None:
    """connect(), and tell as soon as it has a port, which is before the handshake is done."""
    import select  # noqa: PLC0415 - only where somebody waits in line

    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            watch.leave()
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if not poll.poll(None if timeout is None else milliseconds(timeout)):
                raise TimeoutError("timed out")
            number = sock.getsockopt(SOL_SOCKET, SO_ERROR)
    finally:
        sock.settimeout(timeout)
    if number:
        raise OSError(number, os.strerror(number))


def milliseconds(seconds: float) -> int:
    """A time as poll(2) takes it, which is an int: at most 24 days."""
    return min(math.ceil(seconds * 1000), 2**31 - 1)


def _connect_with(
    sock: socket.socket, request: Request, data: bytes | bytearray | memoryview
) -> int:
    """connect(), for a stream with the first bytes of data, in the SYN where that is possible."""
    if not data or not request.stream:
        sock.connect(request.address)
        return 0
    try:
        return sock.sendto(data, MSG_FASTOPEN, request.address)
    except BlockingIOError:
        # No cookie yet. A socket with a timeout waits in send() until the handshake
        # is done, a non-blocking one tells its user, as connect() would.
        if not sock.gettimeout():
            raise
    except OSError as error:
        # Clients may not (net.ipv4.tcp_fastopen), or MPTCP cannot (before 6.2).
        if error.errno != errno.EOPNOTSUPP:
            raise
        sock.connect(request.address)
    return sock.send(data)
