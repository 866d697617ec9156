"""What a call asks for, checked: from address tuples to a `Request`.

Everything that can be refused without a system call is refused here, before
anything touches a socket. Checking costs microseconds and callers repeat
themselves, so the last few hundred requests are kept: a request is a pure
function of its arguments.
"""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any, Final

from connectx.addresses import HIGHEST_PORT, Address, Endpoint
from connectx.linux import uapi

if TYPE_CHECKING:
    from connectx.addresses import PortRange
    from connectx.errors import ConnectxError

AF_INET: Final = int(socket.AF_INET)
AF_INET6: Final = int(socket.AF_INET6)
SOCK_STREAM: Final = int(socket.SOCK_STREAM)
SOCK_DGRAM: Final = int(socket.SOCK_DGRAM)

#: (type, proto) of the sockets we serve. SOCK_DIAG and SO_PROTOCOL give the
#: protocol's own number, socket() takes 0 for the family's default.
PROTOCOLS: Final = {
    (SOCK_STREAM, 0): "tcp",
    (SOCK_STREAM, uapi.IPPROTO_TCP): "tcp",
    (SOCK_STREAM, uapi.IPPROTO_MPTCP): "mptcp",
    (SOCK_DGRAM, 0): "udp",
    (SOCK_DGRAM, uapi.IPPROTO_UDP): "udp",
    (SOCK_DGRAM, uapi.IPPROTO_UDPLITE): "udplite",
}

#: The protocol whose hash tables, and so whose ports, a protocol's sockets use.
#: The first subflow of an MPTCP connection is a TCP socket.
DIAG_PROTOCOLS: Final = {
    "tcp": uapi.IPPROTO_TCP,
    "mptcp": uapi.IPPROTO_TCP,
    "udp": uapi.IPPROTO_UDP,
    "udplite": uapi.IPPROTO_UDPLITE,
}

V4_MAPPED: Final = "::ffff:"
_IPV4_LENGTH: Final = 4
_ANY: Final[Address] = ("", 0)


class Request:
    """One destination, and the source wanted for it.

    protocol: "tcp", "mptcp", "udp" or "udplite".
    stream: whether that is a stream protocol.
    family, type, proto: as socket() takes them.
    strategy: the name of the strategy to use.
    source: host "" and port 0 where any will do.
    destination: where to; `address` is the same as connect() takes it.
    scope: the interface of a link-local destination: the kernel binds sockets to it, and
    those of another one are on other tuples (tcp_v6_connect, __ip6_datagram_connect); else 0.
    source_suffix: what follows host and port in the source's address tuple.
    wire_family, wire_source, wire_destination: the packed addresses that go on the
    wire, IPv4 for an IPv4-mapped destination; wire_source is b"" for any.
    """

    __slots__ = (
        "address",
        "destination",
        "diag_protocol",
        "family",
        "proto",
        "protocol",
        "scope",
        "source",
        "source_suffix",
        "strategy",
        "stream",
        "type",
        "wire_destination",
        "wire_family",
        "wire_source",
    )

    def __init__(
        self,
        family: int,
        kind: int,
        proto: int,
        strategy: str,
        source: Endpoint,
        destination: Endpoint,
    ) -> None:
        self.protocol = PROTOCOLS[kind, proto]
        self.diag_protocol = DIAG_PROTOCOLS[self.protocol]
        self.stream = kind == SOCK_STREAM
        self.family = family
        self.type = kind
        self.proto = proto
        self.strategy = strategy
        self.source = source
        self.destination = destination
        self.address = sockaddr(family, destination)
        mapped = destination.host.startswith(V4_MAPPED)
        self.wire_family = AF_INET if mapped else family
        self.wire_destination = self._wire(destination.host)
        self.wire_source = self._wire(source.host) if source.host else b""
        linked = self.wire_destination[0] == 0xFE and self.wire_destination[1] & 0xC0 == 0x80
        self.scope = destination.scope_id if self.wire_family == AF_INET6 and linked else 0
        # A link-local source needs a scope, and has the destination's.
        self.source_suffix = (
            () if family == AF_INET else (0, source.scope_id or destination.scope_id)
        )

    def source_host(self, wire_source: bytes) -> str:
        """A source that goes on the wire as bind() takes it on this request's sockets."""
        host = socket.inet_ntop(self.wire_family, wire_source)
        return host if self.family == self.wire_family else V4_MAPPED + host

    def error(
        self,
        kind: type[ConnectxError],
        message: str,
        number: int | None = None,
        ports: PortRange | None = None,
    ) -> ConnectxError:
        """An error about this request.

        number: its errno, where that is not its class's own. ports: those asked for.
        """
        return kind(
            message,
            errno=number,
            protocol=self.protocol,
            source=self.source,
            destination=self.destination,
            ports=ports,
            strategy=self.strategy,
        )

    def _wire(self, host: str) -> bytes:
        return socket.inet_pton(self.wire_family, host.removeprefix(V4_MAPPED))


def sockaddr(family: int, endpoint: Endpoint) -> Address:
    """An endpoint as the socket module takes it for a family."""
    if family == AF_INET:
        return endpoint.host, endpoint.port
    return tuple(endpoint)  # type: ignore[return-value]  # a NamedTuple of the four


def parse(
    family: int,
    kind: int,
    proto: int,
    strategy: str,
    source: Address | None,
    destination: Address,
) -> Request:
    """Check the arguments of a call on a socket of this family, type and protocol.

    family: AF_INET or AF_INET6; 0 takes the destination's own.
    Raises TypeError or ValueError saying which argument is wrong and why.
    """
    check_forms(destination, source, strategy)
    return _parse(family, kind, proto, strategy, source, destination)


@functools.lru_cache(maxsize=512)
def _parse(
    family: int,
    kind: int,
    proto: int,
    strategy: str,
    source: Address | None,
    destination: Address,
) -> Request:
    """The same for addresses of the right form."""
    require_served(family or AF_INET, kind, proto)
    to_family, to = _endpoint("destination", destination)
    if not to.host:
        to = _loopback(to, destination)
    if not to.port:
        raise ValueError(f"the destination's port is 1 to {HIGHEST_PORT}: {destination!r}")
    _require_family("destination", destination, to_family, family or to_family)
    family = family or to_family
    from_family, wanted = _endpoint("source", _ANY if source is None else source)
    if wanted.host:
        _require_family("source", source, from_family, family)
        if wanted.host.startswith(V4_MAPPED) != to.host.startswith(V4_MAPPED):
            raise ValueError(
                f"source {source!r} and destination {destination!r} must both be "
                "IPv4-mapped, or neither"
            )
    return Request(family, kind, proto, strategy, wanted, to)


def require_served(family: int, kind: int, proto: int) -> None:
    """Refuse kinds of sockets that connectx does not know: ValueError."""
    if family not in (AF_INET, AF_INET6):
        raise ValueError(f"connectx serves AF_INET and AF_INET6 sockets, not family {family}")
    if (kind, proto) not in PROTOCOLS:
        raise ValueError(
            "connectx serves TCP, MPTCP, UDP and UDP-Lite sockets, "
            f"not type {kind}, protocol {proto}"
        )


def _loopback(to: Endpoint, destination: Address) -> Endpoint:
    """Where a connection to the wildcard address goes: Linux takes the loopback address."""
    packed = _packed(destination[0])
    if packed is None:
        raise ValueError(f"the destination has no host: {destination!r}")
    if len(packed) == _IPV4_LENGTH:
        return to._replace(host="127.0.0.1")
    return to._replace(host=f"{V4_MAPPED}127.0.0.1" if any(packed) else "::1")


@functools.lru_cache(maxsize=512)
def parse_literal(
    destination: tuple[str | None, int | str] | Address,
    source: Address | None,
    kind: int,
    proto: int,
    strategy: str,
) -> Request | None:
    """The request for a destination and a source that need no resolver; None for others.

    What equals the arguments of an earlier call, as 443.0 does 443, is taken for them.
    """
    # An empty one is none, as for socket.create_connection().
    source = source or None
    check_forms(destination, source, strategy, resolved=True)
    host, port = destination[:2]
    if not isinstance(port, int) or not is_literal(host):
        return None
    if source is not None and source[0] and not is_literal(source[0]):
        return None
    return _parse(0, kind, proto, strategy, source, destination)


def check_forms(
    destination: tuple[str | None, int | str] | Address,
    source: Address | None,
    strategy: str,
    *,
    resolved: bool = False,
) -> None:
    """Refuse arguments that are not of the right form: TypeError or ValueError.

    resolved: whether a resolver will see the destination.
    """
    _check_form("destination", destination, resolved=resolved)
    if source is not None:
        _check_form("source", source)
    if not isinstance(strategy, str):
        raise TypeError(f"the strategy is a name, not {strategy!r}")


def is_literal(host: object) -> bool:
    """Whether a host is an IP address in text form, without a scope."""
    return isinstance(host, str) and _packed(host) is not None


def with_scope_id(address: Address) -> Address:
    """An address whose host has a scope ("fe80::1%eth0") as the 4-tuple the kernel takes.

    Other values come back as they are. Raises ValueError for an unknown interface.
    """
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return address
    host, percent, scope = address[0].partition("%")
    if not percent or not is_literal(host):
        return address
    try:
        index = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    except OSError as error:
        raise ValueError(f"no interface {scope!r} for the scope of {address!r}") from error
    return host, address[1], address[2] if len(address) > 2 else 0, index


def scoped(address: Any) -> Any:
    """An address with its scope as a number; uvloop's resolver drops one that is in the text."""
    try:
        return with_scope_id(address)
    except ValueError:
        # No such interface: the resolver says so.
        return address


def resolve_source(source: Address | None, family: int, kind: int) -> Address | None:
    """A source whose host may be a name, as an address of a family.

    Raises OSError (socket.gaierror) where the name has no address of the family.
    """
    if not source or not source[0]:
        return source or None
    return socket.getaddrinfo(source[0], source[1], family, kind)[0][4]  # type: ignore[return-value]


def _endpoint(role: str, address: Address) -> tuple[int, Endpoint]:
    """An address tuple as a family and an endpoint with canonical text; family 0 for no host."""
    host, *numbers = address
    if not host:
        return 0, Endpoint("", *numbers)
    packed = _packed(host)
    if packed is None:
        raise ValueError(
            f"the {role}'s host is an IP address, not {host!r}: "
            "create_connection() resolves names, connectx() does not"
        )
    family = AF_INET if len(packed) == _IPV4_LENGTH else AF_INET6
    if family == AF_INET and len(address) != 2:
        raise ValueError(f"the {role} is IPv4 and has no flowinfo or scope_id: {address!r}")
    return family, Endpoint(_text(family, packed), *numbers)


def _check_form(role: str, address: object, *, resolved: bool = False) -> None:
    """Refuse what is no address tuple: TypeError, or ValueError for lengths and numbers.

    resolved: whether a resolver will see it, which takes None for a host and the
    name of a service for a port. It would take a port that is too high modulo 65536.
    """
    if not isinstance(address, tuple):
        raise TypeError(f"the {role} is an address tuple (host, port), not {address!r}")
    if len(address) not in (2, 4):
        raise ValueError(
            f"the {role} is (host, port) or (host, port, flowinfo, scope_id), not {address!r}"
        )
    host, *numbers = address
    if not isinstance(host, str) and not (resolved and isinstance(host, bytes | None)):
        raise TypeError(f"the {role}'s host is text, not {host!r}")
    if resolved and isinstance(numbers[0], str | bytes | None):
        return
    limits = (("port", HIGHEST_PORT), ("flowinfo", 0xFFFFF), ("scope_id", 0xFFFFFFFF))
    for number, (name, highest) in zip(numbers, limits, strict=False):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"the {role}'s {name} is an integer, not {number!r}")
        if not 0 <= number <= highest:
            raise ValueError(f"the {role}'s {name} is 0 to {highest}, not {number}")


def _require_family(role: str, address: object, has: int, needs: int) -> None:
    if has != needs:
        kind = "IPv4" if needs == AF_INET else "IPv6 (an IPv4 address as ::ffff:192.0.2.1)"
        raise ValueError(f"the {role} must be {kind} here: {address!r}")


def _packed(host: str) -> bytes | None:
    """The address in network order, or None where the text is no address."""
    for family in (AF_INET, AF_INET6):
        try:
            return socket.inet_pton(family, host)
        except (OSError, ValueError):  # not of this family, or not text the C library takes
            continue
    return None


def _text(family: int, packed: bytes) -> str:
    """The kernel's text for an address, "" for the wildcard."""
    if not any(packed):
        return ""
    if packed[:12] == b"\0" * 10 + b"\xff\xff" and len(packed) == 16:
        host = socket.inet_ntop(AF_INET, packed[12:])
        return "" if not any(packed[12:]) else V4_MAPPED + host
    return socket.inet_ntop(family, packed)
