"""What a call asks for, checked: from address tuples to a `Request`.

Everything that can be refused without a system call is refused here, before anything
touches a socket. Callers repeat themselves, and checking costs as much as two system
calls, so the last few hundred requests are kept: a request is a pure function of the
arguments.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx.addresses import (
    AF_INET,
    AF_INET6,
    HIGHEST_PORT,
    PROTOCOL_OF,
    SOCK_STREAM,
    V4_MAPPED,
    V4_MAPPED_TEXT,
    Address,
    Endpoint,
    canonical,
    family_of,
    needs_scope,
    packed,
    resolve_scope,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import PortRange
    from connectx.errors import ConnectxError

#: Requests that are kept: as many as the plans that were made last, which are found by them.
_MOST_REQUESTS: Final = 1024

#: What callers see of an address: a host, a port, and for IPv6 perhaps two numbers more.
_LIMITS: Final = (("port", HIGHEST_PORT), ("flowinfo", 0xFFFFF), ("scope_id", 0xFFFFFFFF))


class Routing(NamedTuple):
    """What a socket's owner has set that only the route of its datagrams depends on.

    Attributes:
        tos: IP_TOS, or IPV6_TCLASS.
        interface: The device that IP_UNICAST_IF or IP_MULTICAST_IF names, whichever applies,
            or their IPv6 siblings; 0 for none.
        source: The octets of the source address that IP_MULTICAST_IF or IPV6_ADDR_PREFERENCES
            choose; b"" for the one that routing chooses.
        uid: The socket's owner.
    """

    tos: int
    interface: int
    source: bytes
    uid: int


class Options(NamedTuple):
    """What bears on a call's source besides its addresses.

    Attributes:
        mark, interface: SO_MARK and SO_BINDTOIFINDEX of the socket; 0 for none.
        ports: The ports to stay within, such as the socket's own IP_LOCAL_PORT_RANGE;
            None for the range in force.
        replaceable: Whether a socket that is stuck on a port may be replaced by a new one.
        freebind: Whether the source may be an address that is not local (IP_FREEBIND).
        routing: What else decides the route; None for what a new socket has.
        exclude: Ports that are never chosen.
        plain: Whether to connect as the standard library does where connectx cannot.
    """

    mark: int = 0
    interface: int = 0
    ports: PortRange | None = None
    replaceable: bool = False
    freebind: bool = False
    routing: Routing | None = None
    exclude: tuple[PortRange, ...] = ()
    plain: bool = False

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Most of the time it is looked for as an object, which a copy would not be.
        return "NEW_SOCKET" if self == NEW_SOCKET else (Options, tuple(self))


#: The options of a socket that has just been made for the call, and of a caller's that has
#: nothing set.
NEW_SOCKET: Final = Options(replaceable=True)
PLAIN: Final = Options()


class Origin:
    """Our end of a connection, as a call asks for it: all of a request but the destination.

    Attributes:
        protocol: The protocol's name, such as "tcp".
        stream: Whether that is a stream protocol.
        table: The IPPROTO_* number of the kernel's table that has its sockets.
        family, type, proto: As socket() takes them.
        strategy: The name of the strategy that chooses the source port.
        source: The source; its host is "" and its port 0 where any will do.
        options: What the socket has set that bears on its source.
        version: The IP version on the wire, 4 or 6: of an IPv4-mapped address 4.
        wire_family, wire_source: The family and the source as they go on the wire: IPv4 for
            an IPv4-mapped destination. wire_source is b"" for any.
    """

    __slots__ = (
        "family",
        "options",
        "proto",
        "protocol",
        "source",
        "strategy",
        "stream",
        "table",
        "type",
        "version",
        "wire_family",
        "wire_source",
    )

    def __init__(
        self,
        family: int,
        wire_family: int,
        kind: int,
        proto: int,
        strategy: str,
        source: Address | None,
        options: Options,
    ) -> None:
        if (kind, proto) not in PROTOCOL_OF:
            require_served(family, kind, proto)
        protocol = PROTOCOL_OF[kind, proto]
        self.protocol = protocol.name
        self.table = protocol.table
        self.stream = kind == SOCK_STREAM
        self.family = family
        self.type = kind
        self.proto = proto
        self.strategy = strategy
        self.options = options
        self.wire_family = wire_family
        self.version = 4 if wire_family == AF_INET else 6
        self.source, self.wire_source = Endpoint("", 0), b""
        if source is None:
            return
        address, octets, wire = _end("source", source)
        self.source = Endpoint(*address)
        if not self.source.host:
            return
        if family_of(octets) != family:
            raise _wrong_family("source", source, family)
        if family_of(wire) != wire_family:
            raise ValueError(
                f"source {source!r} and the destination must both be IPv4-mapped, or neither"
            )
        self.wire_source = wire

    def __repr__(self) -> str:
        source = "any source" if self.source == ("", 0, 0, 0) else self.source
        return f"<Origin {self.protocol} {source}, {self.strategy}>"


#: Few origins serve all the calls of a program.
_origin: Final = functools.lru_cache(maxsize=128)(Origin)


class Request:
    """One destination, and where to connect to it from.

    Attributes:
        origin: Where from, and how.
        address: The destination as connect() takes it.
        scope: The interface of a link-local destination or source, else 0. The kernel binds
            the socket to it, so another interface has other 4-tuples (tcp_v6_connect,
            __ip6_datagram_connect, __inet6_bind).
        source_suffix: What follows host and port in the source's address tuple.
        follows_source: Whether the destination is whatever address the source is, as it is
            for 0.0.0.0.
        wire_destination: The octets of the destination that go on the wire.
    """

    __slots__ = (
        "address",
        "follows_source",
        "origin",
        "scope",
        "source_suffix",
        "wire_destination",
    )

    source_suffix: tuple[int, ...]

    def __init__(self, origin: Origin, address: Address, wire_destination: bytes) -> None:
        self.origin = origin
        self.address = address
        self.wire_destination = wire_destination
        self.scope = 0
        self.follows_source = False
        if len(address) == 2:
            self.source_suffix = ()
            return
        host, port, flowinfo, scope_id = address
        if scope_id and not needs_scope(wire_destination):
            # The kernel ignores it.
            scope_id = 0
            self.address = host, port, flowinfo, 0
        # A link-local source needs a scope, and has the destination's.
        self.source_suffix = (0, origin.source.scope_id or scope_id)
        if origin.version == 4:
            return
        self.scope = scope_id
        if not scope_id and origin.source.scope_id and needs_scope(origin.wire_source):
            self.scope = origin.source.scope_id

    @property
    def destination(self) -> Endpoint:
        """The destination."""
        return Endpoint(*self.address)

    def __repr__(self) -> str:
        origin = self.origin
        source = "any source" if origin.source == ("", 0, 0, 0) else origin.source
        return f"<Request {origin.protocol} {source} -> {self.destination}, {origin.strategy}>"

    def source_host(self, wire_source: bytes) -> str:
        """Return a source that goes on the wire as bind() takes it on this request's sockets."""
        if self.origin.family != self.origin.wire_family:
            return text(V4_MAPPED + wire_source)
        return text(wire_source)

    def error(
        self,
        kind: type[ConnectxError],
        message: str,
        number: int | None = None,
        ports: PortRange | None = None,
        explanation: Callable[[], str] | None = None,
    ) -> ConnectxError:
        """Return an error about this request.

        Args:
            kind: Its class.
            message: What happened, why, and what to do.
            number: Its errno, where that is not the class's own.
            ports: The ports that were asked for.
            explanation: Returns the cause and the remedies as text.
        """
        return kind(
            message,
            errno=number,
            protocol=self.origin.protocol,
            source=self.origin.source,
            destination=self.destination,
            ports=ports,
            strategy=self.origin.strategy,
            explanation=explanation,
        )


def parse(
    family: int,
    kind: int,
    proto: int,
    strategy: str,
    source: Address | None,
    destination: Address,
    options: Options = NEW_SOCKET,
) -> Request:
    """Check the arguments of a call on a socket of this family, type and protocol.

    Args:
        family: AF_INET or AF_INET6; 0 for the destination's own.
        kind: SOCK_STREAM or SOCK_DGRAM.
        proto: The protocol, 0 for the default of the type.
        strategy: The name of a strategy.
        source: Where to connect from; None for any address and port.
        destination: Where to connect to.
        options: What the socket has set.

    Raises:
        TypeError: An argument is of the wrong form; the message says which, and why.
        ValueError: An argument cannot be right.
    """
    # Before the cache, which takes 443.0 for 443, and cannot hold a list.
    if not _has_usual_form(destination):
        destination = with_text_host(destination)
        _require_form("destination", destination)
    if "%" in destination[0]:
        destination = with_scope_id(destination)
    if source is not None:
        if not _has_usual_form(source):
            source = with_text_host(source)
            _require_form("source", source)
        if "%" in source[0]:
            source = with_scope_id(source)
    if strategy.__class__ is not str:
        _require_name(strategy)
    return _parse_once(family, kind, proto, strategy, source, destination, options)


@functools.lru_cache(maxsize=_MOST_REQUESTS)
def _parse_once(
    family: int,
    kind: int,
    proto: int,
    strategy: str,
    source: Address | None,
    destination: Address,
    options: Options,
) -> Request:
    try:
        return _parse(family, kind, proto, strategy, source, destination, options)
    except _NotLiteralError as error:
        raise ValueError(
            f"{error}: create_connection() resolves names, connectx() does not"
        ) from None


@functools.lru_cache(maxsize=_MOST_REQUESTS)
def parse_literal(
    destination: tuple[str | None, int | str] | Address,
    source: Address | None,
    kind: int,
    proto: int,
    strategy: str,
) -> Request | None:
    """Return the request for a destination and a source that need no resolver; None for others.

    Raises as `parse` does. Arguments that equal those of an earlier call, as 443.0 equals
    443, are taken for them.
    """
    # An empty one is none, as for socket.create_connection().
    source = source or None
    if not _has_usual_form(destination) or (source is not None and not _has_usual_form(source)):
        source = with_text_host(source)
        check_forms(destination, source, strategy)
        host, port = destination[:2]
        if not isinstance(host, str) or not isinstance(port, int):
            return None
    if strategy.__class__ is not str:
        _require_name(strategy)
    if not destination[0]:
        return None
    try:
        return _parse(0, kind, proto, strategy, source, destination, NEW_SOCKET)  # type: ignore[arg-type]
    except _NotLiteralError:
        return None


@functools.lru_cache(maxsize=512)
def request_from(to: Request, host: str, options: Options) -> Request:
    """Return the request for the same destination from a source address; "" for any.

    Args:
        to: The request.
        host: An IP address without a scope; IPv4 for an IPv4-mapped destination.
        options: What the socket has set.
    """
    of = to.origin
    if host and of.family != of.wire_family:
        host = f"{V4_MAPPED_TEXT}{host}"
    port = of.source.port
    source = (host, port) if host or port else None
    origin = _origin(of.family, of.wire_family, of.type, of.proto, of.strategy, source, options)
    if host and to.follows_source:
        return Request(origin, (host, *to.address[1:]), origin.wire_source)
    return Request(origin, to.address, to.wire_destination)


@functools.lru_cache(maxsize=512)
def request_with(to: Request, options: Options) -> Request:
    """Return the same request for a socket that has other options."""
    of, source = to.origin, to.origin.source
    origin = _origin(
        of.family,
        of.wire_family,
        of.type,
        of.proto,
        of.strategy,
        source if of.family == AF_INET6 else source[:2],
        options,
    )
    return Request(origin, to.address, to.wire_destination)


def as_tuple(address: Any) -> Any:
    """Return an address that is a list as the tuple that it should be; others as they are."""
    return tuple(address) if isinstance(address, list) else address


def with_text_host(address: Any) -> Any:
    """Return an address with its host as text, where that is octets, as sockets take it."""
    if isinstance(address, tuple) and address and isinstance(address[0], bytes | bytearray):
        try:
            return (bytes(address[0]).decode("idna"), *address[1:])
        except UnicodeError:
            return address
    return address


def check_forms(
    destination: tuple[str | None, int | str] | Address, source: Address | None, strategy: str
) -> None:
    """Refuse arguments that no resolver could make sense of: TypeError or ValueError."""
    _require_form("destination", destination, resolved=True)
    if source is not None:
        _require_form("source", source)
    _require_name(strategy)


def require_served(family: int, kind: int, proto: int) -> None:
    """Refuse sockets that connectx does not know: ValueError."""
    if family not in (AF_INET, AF_INET6):
        raise ValueError(f"connectx serves AF_INET and AF_INET6 sockets, not family {family}")
    if (kind, proto) not in PROTOCOL_OF:
        raise ValueError(
            "connectx serves TCP, MPTCP, UDP and UDP-Lite sockets, "
            f"not type {kind}, protocol {proto}"
        )


def with_scope_id(address: Address) -> Address:
    """Return an address whose host has a scope ("fe80::1%eth0") as the tuple the kernel takes.

    Other values come back as they are.

    Raises:
        ValueError: There is no such interface.
    """
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return address
    if "%" not in address[0] or packed(address[0].partition("%")[0]) is None:
        return address
    try:
        host, scope_id = resolve_scope(address[0])
    except OSError as error:
        raise ValueError(f"{error.strerror}, which is the scope of {address!r}") from error
    return host, address[1], address[2] if len(address) > 2 else 0, scope_id


def scoped(address: Any) -> Any:
    """Return the same, but leave an unknown interface for the resolver to name.

    uvloop's resolver drops a scope that is in the text.
    """
    try:
        return with_scope_id(address)
    except ValueError:
        return address


class _NotLiteralError(ValueError):
    """A host that is no IP address."""


def _parse(
    family: int,
    kind: int,
    proto: int,
    strategy: str,
    source: Address | None,
    destination: Address,
    options: Options,
) -> Request:
    """Do what `parse` does, for addresses of the right form."""
    to, octets, wire = _end("destination", destination)
    wildcard = b""
    if not to[0]:
        wildcard = octets
        to, octets, wire = _here(to, octets, destination, source)
    if not to[1]:
        raise ValueError(f"the destination's port is 1 to {HIGHEST_PORT}: {destination!r}")
    to_family = AF_INET if len(octets) == 4 else AF_INET6
    if family and family != to_family:
        if family not in (AF_INET, AF_INET6):
            require_served(family, kind, proto)
        raise _wrong_family("destination", destination, family)
    wire_family = AF_INET if len(wire) == 4 else AF_INET6
    origin = _origin(to_family, wire_family, kind, proto, strategy, source, options)
    request = Request(origin, to, wire)
    if wildcard:
        request.follows_source = any(wildcard) or len(wildcard) == 4
    return request


def _end(role: str, address: Address) -> tuple[Address, bytes, bytes]:
    """Return an address with the kernel's text, as sockets of its family take it, and its octets.

    The host is "" for the wildcard address, and the octets b"" where there is no host.
    """
    host = address[0]
    if not host:
        return address, b"", b""
    found = canonical(host)
    if found is None:
        raise _NotLiteralError(f"the {role}'s host is an IP address, not {host!r}")
    host, octets, wire = found
    if len(octets) == 16:
        return (host, *(address[1:] if len(address) == 4 else (address[1], 0, 0))), octets, wire
    if len(address) != 2:
        raise ValueError(f"the {role} is IPv4 and has no flowinfo or scope_id: {address!r}")
    return (host, address[1]), octets, wire


def _here(
    to: Address, octets: bytes, destination: Address, source: Address | None
) -> tuple[Address, bytes, bytes]:
    """Return where a connection to the wildcard address goes.

    For IPv4 that is the source's own address, where there is one (ip_route_output_key), and
    the loopback address otherwise. For IPv6 it is always the latter (tcp_v6_connect).
    """
    if not octets:
        raise ValueError(f"the destination has no host: {destination!r}")
    host, own, _ = canonical(source[0]) or ("", b"", b"") if source else ("", b"", b"")
    if len(octets) == 4:
        return _end("destination", (host if len(own) == 4 and host else "127.0.0.1", to[1]))
    mapped = own.startswith(V4_MAPPED) and host
    if not any(octets):
        host = f"{V4_MAPPED_TEXT}127.0.0.1" if mapped else "::1"
    elif not mapped:
        host = f"{V4_MAPPED_TEXT}127.0.0.1"
    return _end("destination", (host, *to[1:]))


def _has_usual_form(address: Any) -> bool:
    """Return whether an address is a tuple of a host and a port: quick, and true of nearly all."""
    return (
        address.__class__ is tuple
        and len(address) == 2
        and address[0].__class__ is str
        and address[1].__class__ is int
        and 0 <= address[1] <= HIGHEST_PORT
    )


def _require_form(role: str, address: object, *, resolved: bool = False) -> None:
    """Refuse what is no address tuple: TypeError, or ValueError for lengths and numbers.

    resolved: whether a resolver will see it, which takes None for a host and the
    name of a service for a port. It would take a port that is too high modulo 65536.
    """
    if not isinstance(address, tuple):
        raise TypeError(f"the {role} is an address tuple {_right_form(address)}, not {address!r}")
    if len(address) not in (2, 4):
        raise ValueError(
            f"the {role} is (host, port) or (host, port, flowinfo, scope_id), not {address!r}"
        )
    host, *numbers = address
    if not isinstance(host, str) and not (resolved and isinstance(host, bytes | None)):
        raise TypeError(f"the {role}'s host is text, not {host!r}")
    if resolved and isinstance(numbers[0], str | bytes | None):
        return
    for number, (name, highest) in zip(numbers, _LIMITS, strict=False):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"the {role}'s {name} is an integer, not {number!r}")
        if not 0 <= number <= highest:
            raise ValueError(f"the {role}'s {name} is 0 to {highest}, not {number}")


def _right_form(address: object) -> str:
    """Return what an address should look like: for text such as "[::1]:443" the very tuple."""
    if isinstance(address, bytes | bytearray):
        return _right_form(address.decode(errors="replace"))
    if isinstance(address, str):
        host, colon, port = address.rpartition(":")
        if colon and port.isascii() and port.isdecimal():
            return f"such as {(host.removeprefix('[').removesuffix(']'), int(port))!r}"
    return "(host, port)"


def _require_name(strategy: object) -> None:
    if not isinstance(strategy, str):
        raise TypeError(f"the strategy is a name, not {strategy!r}")


def _wrong_family(role: str, address: object, needed: int) -> ValueError:
    kind = "IPv4" if needed == AF_INET else "IPv6 (an IPv4 address as ::ffff:192.0.2.1)"
    return ValueError(f"the {role} must be {kind} here: {address!r}")
