"""Dialer: which sources and ports, how many connections, and which calls wait; waits in poll(2)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from connectx._connect.configured import checked
from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._dial.connecting import CallersCall, by_name, call_to
from connectx._dial.policy import AnyDialer
from connectx.blocking import run

if TYPE_CHECKING:
    from connectx._connect.configured import SocketOptions
    from connectx._dial.capacity import Capacity
    from connectx.addresses import Address


class Dialer(AnyDialer):
    """Opens connections from many sources, within limits, and waits for a port if need be.

    A dialer is safe under threads. In a forked child it begins with nothing open. It holds
    nothing that would have to be closed.

    Args:
        sources: IP addresses and prefixes such as "2001:db8::/64", of both families. By
            default the routing table chooses. Another dialer, of either kind, makes this
            one share its settings, limits, counts and wait queue.
        ports: A range (low, high) of source ports, or several, to be used in this order.
            By default net.ipv4.ip_local_port_range. Ports outside of that are bound
            explicitly: other programs can bind them only with SO_REUSEADDR then, a port that
            turns out to be taken costs a new socket, and `connectx` cannot use them.
        exclude: Source ports to leave out, and ranges (low, high) of them.
        strategy: How source ports are chosen, by name; "auto" is right for nearly all.
        rotate: "most-free" takes the source with the fewest connections to the destination,
            "round-robin" one after the other for each destination, "sticky" always the
            same for a key.
        limit: The most connections of this dialer to one destination.
        wait: Seconds to wait for a port, or for a slot under the limit, instead of
            failing. Calls are served first come, first served.
        freebind: Whether sources need not be local (IP_FREEBIND), as for a prefix that is
            routed here.
        on_wait: Called with ``(protocol, destination)`` when a call begins to wait.
        fallback: "plain" to connect as the standard library does, where a call would raise
            NotSupported otherwise, as on other platforms than Linux: from a source of the
            dialer's, and from whatever port.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument cannot be right.
    """

    def create_connection(
        self,
        address: tuple[str | None, int | str],
        timeout: float | None = DEFAULT_TIMEOUT,
        source_address: Address | None = None,
        *,
        all_errors: bool = False,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
        key: str | None = None,
        socket_options: SocketOptions | None = None,
        wait: float | None = None,
    ) -> socket.socket:
        """Connect to an address by this dialer's policy, and return the socket.

        Args:
            address: ``(host, port)``, as `connectx.create_connection` takes it.
            timeout: Seconds for each address and source; waiting for a port is not part
                of it.
            source_address: ``(host, port)`` to connect from: one of the dialer's sources,
                or "" for any, and one of its ports, or 0 for any.
            all_errors: Whether to raise an ExceptionGroup of the errors of all addresses.
            type: SOCK_STREAM or SOCK_DGRAM.
            proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.
            key: What a "sticky" source belongs to; by default the destination's host.
            socket_options: As `connectx.create_connection` takes them.
            wait: Seconds to wait for a port, where the dialer would wait longer.

        Raises:
            PortsExhausted: No source has a free port, and none came free in the time that
                the dialer waits (EADDRNOTAVAIL; for UDP EAGAIN).
            ValueError: The source address is not the dialer's, or not its key's.
            OSError: As `connectx.create_connection` raises it.
        """
        policy = self._policy
        options = () if socket_options is None else checked(socket_options)
        call = None
        if source_address is None:
            call = call_to(
                policy,
                address,
                timeout,
                type,
                proto,
                key,
                awaited=False,
                options=options,
                wait=wait,
            )
        if call is None or all_errors:
            return run(
                by_name(
                    policy,
                    address,
                    timeout,
                    source_address,
                    type,
                    proto,
                    key,
                    all_errors=all_errors,
                    awaited=False,
                    options=options,
                    wait=wait,
                )
            )
        steps = call.begin()
        if steps is not None:
            run(steps)
        return call.sock

    def connectx(
        self,
        sock: socket.socket,
        destination: Address,
        *,
        data: bytes | bytearray | memoryview = b"",
        key: str | None = None,
    ) -> int:
        """Connect a socket made elsewhere, from one of the sources.

        The kernel is asked about its end, since the socket does not report it: at once
        while a call waits for a slot, and before a call is refused at the limit. With
        `freebind`, IP_FREEBIND is set on it. A socket that is bound to an address keeps it.

        Args:
            sock, destination, data: As `connectx.connectx` takes them.
            key: What a "sticky" source belongs to; by default the destination's host.

        Returns:
            The number of bytes of data that were taken.

        Raises:
            ValueError: The socket is bound to an address that is not the dialer's, or not
                its key's.
            OSError: As `connectx.connectx` raises it.
        """
        call = CallersCall(self._policy, sock, destination, data, key, awaited=False)
        steps = call.begin()
        if steps is not None:
            run(steps)
        return call.result()

    def capacity(
        self,
        address: Address,
        *,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
    ) -> Capacity:
        """Count the connections there can be to an IP address and port, and those there are.

        Reads the kernel's list of sockets, which takes milliseconds where there are many.

        Args:
            address: ``(host, port)`` with an IP address.
            type: SOCK_STREAM or SOCK_DGRAM.
            proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.

        Raises:
            OSError: As reading the kernel's list of sockets does.
        """
        return run(self._policy.count(address, type, proto))
