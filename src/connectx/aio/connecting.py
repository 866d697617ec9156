"""create_connection(), open_connection() and create_datagram_endpoint() for asyncio and uvloop.

The decisions are those of the blocking calls (connectx._connect.connection). What differs is how
to wait: for the handshake, for a name, for a long list of sockets. Nothing here
blocks the loop, and whatever is cancelled leaves no descriptor and no port behind.

"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from functools import partial
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from connectx._connect import connection as steps
from connectx._connect.attempt import Attempt
from connectx._connect.connection import Due
from connectx._connect.namespace import NETWORKS
from connectx._connect.own_socket import TrackedSocket
from connectx._connect.request import check_forms, parse, parse_literal, resolve_source, scoped
from connectx._connect.techniques import discard, replace
from connectx._connect.udp_lock import Contested, NotVisible
from connectx.errors import ConnectxError, RangeNotHonoured
from connectx.linux.sockopts import set_ip_freebind
from connectx.linux.uapi import SO_ERROR, SOL_SOCKET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from connectx._connect.callers_socket import Borrowed
    from connectx._connect.connection import Watch
    from connectx._connect.namespace import Options, Prepared
    from connectx._connect.request import Request
    from connectx._connect.strategies import Outcome
    from connectx.addresses import Address

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

#: Seconds between the starts of two attempts: the Connection Attempt Delay of RFC 8305.
HAPPY_EYEBALLS_DELAY: Final = 0.25


async def create_connection(
    address: tuple[str | None, int | str],
    timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
    source_address: Address | None = None,
    *,
    all_errors: bool = False,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
    proto: int = 0,
    strategy: str = "auto",
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
) -> socket.socket:
    """Connect to an address and return the socket, connected and non-blocking.

    As `connectx.create_connection`, whose arguments it takes, but for asyncio: it
    awaits, and the addresses of a name are tried as RFC 8305 has it.

    timeout: seconds for each address, None for as long as the kernel takes.
    happy_eyeballs_delay: seconds after which the next address is tried beside those
        under way, the families taking turns; None tries one after the other.

    Raises as `connectx.create_connection` does; TimeoutError. Exhaustion of UDP ports
    is PortsExhausted with EAGAIN, never taken for "in progress".
    """
    address, source_address = _as_tuples(address, source_address, strategy)
    request = parse_literal(address, source_address, type, proto, strategy)
    if request is not None and not all_errors:
        return await within(timeout, open_request(request))
    requests: list[Request] = []
    errors: list[OSError] = []
    loop = asyncio.get_running_loop()
    host, port = address[:2]
    # Of an IPv6 address with flowinfo and scope_id, which getaddrinfo() does not take.
    more = cast("tuple[int, ...]", address[2:])
    for family, _, _, _, found in await loop.getaddrinfo(host, port, type=type):
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        try:
            source = await _resolve_source(source_address, family, type)
        except OSError as error:
            errors.append(error)
            continue
        destination = (*found[:2], *(more or found[2:]))
        requests.append(parse(0, type, proto, strategy, source, destination))
    try:
        return await race(
            requests,
            lambda request: within(timeout, open_request(request)),
            happy_eyeballs_delay,
            errors,
        )
    except OSError:
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors) from None
        raise
    finally:
        # The errors' tracebacks refer to this frame: break the cycle.
        errors.clear()


async def open_connection(
    host: str | None,
    port: int | str,
    *,
    limit: int = 2**16,
    timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
    source_address: Address | None = None,
    proto: int = 0,
    strategy: str = "auto",
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    ssl: Any = None,
    server_hostname: str | None = None,
    **keywords: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection() with shared source ports.

    ssl: as there; the handshake is the loop's own.
    server_hostname: what the server's certificate must be for; by default the host.
    keywords: `ssl_handshake_timeout` and `ssl_shutdown_timeout`, as the loop's
        create_connection() takes them.

    The other arguments, and errors, are those of `create_connection`.
    """
    tls = tls_keywords(host, ssl, server_hostname, keywords)
    sock = await create_connection(
        (host, port),
        timeout,
        source_address,
        proto=proto,
        strategy=strategy,
        happy_eyeballs_delay=happy_eyeballs_delay,
    )
    return await stream_over(sock, limit, tls)


def tls_keywords(
    host: str | None, ssl: Any, server_hostname: str | None, keywords: dict[str, Any]
) -> dict[str, Any]:
    """What loop.create_connection() is to be told of TLS, checked before anything is opened.

    Raises TypeError for keywords that it does not look at where it gets a socket, and
    ValueError for those that have no meaning without TLS.
    """
    for name in keywords.keys() - {"ssl_handshake_timeout", "ssl_shutdown_timeout"}:
        instead = ": say source_address, or give a Dialer sources" * (name == "local_addr")
        raise TypeError(f"open_connection() takes no {name!r}{instead}")
    if ssl:
        wanted = host if server_hostname is None else server_hostname
        return {**keywords, "ssl": ssl, "server_hostname": wanted}
    for name, value in {"server_hostname": server_hostname, **keywords}.items():
        if value is not None:
            raise ValueError(f"{name} is only meaningful with ssl")
    return {}


async def stream_over(
    sock: socket.socket, limit: int, tls: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer over a connected socket, which is closed if that fails."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = _StreamProtocol(reader, loop=loop)
    try:
        # As asyncio.open_connection() does it, but for the protocol.
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock, **tls)
    except BaseException:
        if protocol.made is not None:
            # A TLS transport that is closed once its handshake is done goes on reading until
            # its peer has closed as well, and the next one to have the descriptor would find
            # it in use. This takes it out of the loop at once.
            protocol.made.abort()
        # The transport closes it as well, some time later.
        sock.close()
        raise
    finally:
        protocol.made = None
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """Tells of its transport before whoever opens it does.

    made: the transport, from the end of a TLS handshake on.
    """

    made: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = cast("asyncio.WriteTransport", transport)
        super().connection_made(transport)


async def create_datagram_endpoint(
    protocol_factory: Callable[[], Protocol],
    remote_addr: tuple[str | None, int | str],
    source_address: Address | None = None,
    *,
    proto: int = 0,
    strategy: str = "auto",
) -> tuple[asyncio.DatagramTransport, Protocol]:
    """loop.create_datagram_endpoint() for a connected socket that shares its source port.

    remote_addr, source_address: as `create_connection` takes them.
    """
    sock = await create_connection(
        remote_addr,
        source_address=source_address,
        type=socket.SOCK_DGRAM,
        proto=proto,
        strategy=strategy,
    )
    return await endpoint_over(sock, protocol_factory)


async def endpoint_over(
    sock: socket.socket, protocol_factory: Callable[[], Protocol]
) -> tuple[asyncio.DatagramTransport, Protocol]:
    """Transport and protocol over a connected socket, which is closed if that fails."""
    loop = asyncio.get_running_loop()
    try:
        # Called here: a factory that raises would leave uvloop's transport unclosed.
        protocol = protocol_factory()
    except BaseException:
        sock.close()
        raise
    opening = asyncio.ensure_future(loop.create_datagram_endpoint(lambda: protocol, sock=sock))
    try:
        # It needs a turn or two of the loop, and no network. Cancelled in between it would
        # close a transport that keeps the descriptor in the loop, if there is data to be
        # sent already, and nobody would know which.
        return await asyncio.shield(opening)
    except BaseException:
        opening.add_done_callback(partial(_discard_endpoint, sock))
        raise


def _discard_endpoint(
    sock: socket.socket, opening: asyncio.Future[tuple[asyncio.DatagramTransport, Any]]
) -> None:
    if opening.cancelled() or opening.exception() is not None:
        sock.close()
    else:
        opening.result()[0].abort()


# One address.


async def open_request(
    request: Request, options: Options | None = None, watch: Watch | None = None
) -> socket.socket:
    """A connected socket for a request; arguments as for connectx.blocking.open_connection()."""
    sock = TrackedSocket(request.family, request.type, request.proto)
    try:
        sock.settimeout(0)
        if options is not None and options.freebind:
            set_ip_freebind(sock, on=True)
        prepared = NETWORKS.prepare(sock, request, options)
        try:
            await _connect(sock, prepared, replace, watch)
        except ConnectxError as error:
            if isinstance(error, RangeNotHonoured):
                # Connected, but from a port that nobody asked for.
                replace(sock)
            renewed = NETWORKS.prepare_again(prepared)
            if renewed is None:
                raise
            replace(sock)
            await _connect(sock, renewed, replace, watch)
    except BaseException:
        discard(sock)
        raise
    return sock


async def connect_borrowed(borrowed: Borrowed, request: Request, watch: Watch | None) -> None:
    """Connect a caller's non-blocking socket; after an error it is as it was found."""
    try:
        borrowed.begin()
        prepared = NETWORKS.prepare(borrowed.sock, request, borrowed.options)
        await _connect(borrowed.sock, prepared, borrowed.release, watch)
    except BaseException:
        borrowed.restore()
        raise
    borrowed.connected()


async def _connect(
    sock: socket.socket,
    prepared: Prepared,
    renew: Callable[[socket.socket], None],
    watch: Watch | None,
) -> None:
    attempt = Attempt(prepared.plan)
    try:
        while True:
            try:
                due = steps.advance(sock, prepared, attempt, renew)
                if due is Due.SURVEY:
                    attempt.feed(await _survey(prepared))
                    continue
                if due is Due.CONNECT:
                    await _finish(sock, prepared.request.address, watch)
                break
            except (OSError, Contested, NotVisible) as error:
                if not steps.refused(sock, prepared, attempt, error, renew):
                    raise
        steps.settle(sock, prepared, attempt)
        if watch is not None:
            watch.retried(attempt.failures)
    except BaseException:
        attempt.abandon()
        raise


async def _finish(sock: socket.socket, address: Address, watch: Watch | None) -> None:
    """connect(), awaiting the handshake; `watch` is told as soon as there is a port.

    Not loop.sock_connect(): uvloop's drops the scope of an IPv6 address (EINVAL), and
    one that is cancelled may leave its callback to a descriptor that is closed.
    """
    number = sock.connect_ex(address)
    if number == errno.EINPROGRESS and sock.type == socket.SOCK_STREAM:
        if watch is not None:
            watch.leave()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        descriptor = sock.fileno()
        loop.add_writer(descriptor, _resolve, done)
        try:
            await done
        finally:
            loop.remove_writer(descriptor)
        number = sock.getsockopt(SOL_SOCKET, SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def _survey(prepared: Prepared) -> Outcome:
    """Read the list of sockets in another thread: it may take milliseconds."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(None, steps.survey, prepared)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The loop's threads were started in another network namespace than ours.
        return steps.survey(prepared)


# Several addresses.


async def race(
    requests: list[Request],
    opening: Callable[[Request], Awaitable[socket.socket]],
    delay: float | None,
    errors: list[OSError],
) -> socket.socket:
    """The first socket that gets connected; what the others met with goes into `errors`."""
    ordered = _interleaved(requests)
    running: set[asyncio.Future[socket.socket]] = set()
    ended: set[asyncio.Future[socket.socket]] = set()
    try:
        while ordered or running:
            if ordered:
                running.add(asyncio.ensure_future(opening(ordered.popleft())))
            ended, running = await asyncio.wait(
                running,
                timeout=delay if ordered else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = _winner(ended, errors)
            if winner is not None:
                await _call_off((running | ended) - {winner})
                return winner.result()
    except BaseException:
        # The winner as well, if we are cancelled while the others are called off.
        await _call_off(running | ended)
        raise
    finally:
        # Errors refer to this frame: break the cycle.
        running = ended = set()
    if errors:
        raise errors[-1]
    raise OSError("getaddrinfo returns an empty list")


def _winner(
    ended: Iterable[asyncio.Future[socket.socket]], errors: list[OSError]
) -> asyncio.Future[socket.socket] | None:
    """An attempt that has a socket, if one has; other errors than OSError are raised."""
    winner: asyncio.Future[socket.socket] | None = None
    for attempt in ended:
        error = attempt.exception()
        if error is None:
            winner = winner or attempt
        elif isinstance(error, OSError):
            errors.append(error)
        else:
            raise error
    return winner


async def _call_off(attempts: Iterable[asyncio.Future[socket.socket]]) -> None:
    """Cancel attempts, and wait until nothing is left of them.

    Not asyncio.staggered.staggered_race(): before Python 3.13 a cancelled one does not
    wait, and may even begin another attempt, whose socket nobody gets.
    """
    under_way = []
    for attempt in attempts:
        if attempt.done():
            _discard_result(attempt)
            continue
        under_way.append(attempt)
        # Even if we are cancelled again, or it is about to have a socket.
        attempt.add_done_callback(_discard_result)
        attempt.cancel()
    if under_way:
        await asyncio.wait(under_way)


def _discard_result(attempt: asyncio.Future[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        discard(attempt.result())


def _interleaved(requests: Iterable[Request]) -> deque[Request]:
    """The families in turn, beginning with the first one's (RFC 8305, section 4)."""
    families: dict[int, list[Request]] = {}
    for request in requests:
        families.setdefault(request.family, []).append(request)
    turns = chain.from_iterable(zip_longest(*families.values()))
    return deque(request for request in turns if request is not None)


async def _resolve_source(source: Address | None, family: int, kind: int) -> Address | None:
    """`resolve_source`, which may ask a resolver, for hosts that are names."""
    if not source or not source[0]:
        return source or None
    with contextlib.suppress(OSError):
        socket.inet_pton(family, source[0])
        return source
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, resolve_source, source, family, kind)


def _as_tuples(
    address: tuple[str | None, int | str], source: Address | None, strategy: str
) -> tuple[Any, Address | None]:
    # Lists are taken where socket.create_connection() takes them; a cache cannot hold them.
    checked = scoped(tuple(address))
    check_forms(cast("Address", checked), source, strategy, resolved=True)
    return checked, source


async def within(
    timeout: float | None,  # noqa: ASYNC109 - as above
    opening: Awaitable[socket.socket],
) -> socket.socket:
    """Await a socket so many seconds; TimeoutError."""
    async with asyncio.timeout(timeout):
        return await opening
