"""Record the kernel's netlink replies for the decoder's tests: see README.md."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from connectx.linux import netns, uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.route import RouteLookup
from connectx.linux.sock_diag import encode_lookup
from connectx.linux.socket_dump import Filter, encode_dump
from tests import limits
from tests.linux.captures.replay import SEQUENCE

HERE = Path(__file__).parent
LOOPBACK = socket.inet_aton("127.0.0.1")
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")


def exchange(protocol: int, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
    """The datagrams that answer a request."""
    with NetlinkSocket(protocol) as netlink:
        netlink.next_sequence = lambda: SEQUENCE
        netlink._send(kind, flags, payload)
        yield from (bytes(datagram) for datagram in netlink._datagrams())


def record(name: str, protocol: int, kind: int, payload: bytes, flags: int = 0) -> None:
    """Write the answer to a request."""
    lines = [datagram.hex() for datagram in exchange(protocol, kind, flags, payload)]
    (HERE / f"{name}.hex").write_text("\n".join(lines) + "\n")


def record_sockets(stack: ExitStack) -> None:
    """Lookups and dumps of a few sockets with known addresses."""

    def lookup(name: str, protocol: int, port: int) -> None:
        request = encode_lookup(protocol, uapi.AF_INET, LOOPBACK, port, LOOPBACK, 53)
        record(name, uapi.NETLINK_SOCK_DIAG, uapi.SOCK_DIAG_BY_FAMILY, request)

    def dump(name: str, protocol: int, family: int, **wanted: bytes | int) -> None:
        request = encode_dump(family, family, Filter(protocol, **wanted))  # type: ignore[arg-type]
        kind = uapi.SOCK_DIAG_BY_FAMILY
        record(name, uapi.NETLINK_SOCK_DIAG, kind, request, uapi.NLM_F_DUMP)

    for port in range(20000, 20060):
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", 53))
    lookup("lookup-udp-found", uapi.IPPROTO_UDP, 20000)
    lookup("lookup-udp-none", uapi.IPPROTO_UDP, 20999)
    dump("dump-udp", uapi.IPPROTO_UDP, uapi.AF_INET, destination=LOOPBACK, destination_port=53)

    listener = stack.enter_context(
        socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    for host, port in (("::1", 21000), ("127.0.0.1", 21001)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((host, port))
        client.connect((host, 80))
        stack.enter_context(limits.accept(listener)[0])
    lookup("lookup-tcp-none", uapi.IPPROTO_TCP, 20999)
    dump("dump-tcp", uapi.IPPROTO_TCP, uapi.AF_INET6)
    dump("dump-empty", uapi.IPPROTO_TCP, uapi.AF_INET6, destination=LOOPBACK6, destination_port=9)


def record_routes() -> None:
    """Routes to the loopback, and a destination without a route."""
    for name, family, host in (
        ("route-ipv4", uapi.AF_INET, "127.0.0.2"),
        ("route-ipv6", uapi.AF_INET6, "::1"),
        ("route-none", uapi.AF_INET, "192.0.2.1"),
    ):
        request = RouteLookup(family).encode(socket.inet_pton(family, host), 0, b"")
        record(name, uapi.NETLINK_ROUTE, uapi.RTM_GETROUTE, request)


def main() -> None:
    """Record everything."""
    with netns.private_network(), ExitStack() as stack:
        record_sockets(stack)
        record_routes()
    kernel = os.uname()
    (HERE / "kernel.txt").write_text(f"{kernel.sysname} {kernel.release} {kernel.machine}\n")


if __name__ == "__main__":
    main()
