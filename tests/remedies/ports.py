"""Remedies against ports that are all in use, and against those that others have."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile

import pytest

import connectx
from connectx._diagnosis import causes
from connectx.addresses import PortRange
from tests import limits
from tests.api.calls import reset_on_close
from tests.observe.helpers import HERE, HIGH, LOW, PORT, SIZE, leave_time_wait
from tests.remedies.world import TO, World, follows

NOT_AVAILABLE, IN_USE, AGAIN = errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN
NO_PORT = (socket.IPPROTO_IP, 24, 1)
SHARED = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
UDP = socket.SOCK_DGRAM
OTHER = ("127.0.0.9", PORT)
ASKED = ("--errno", "99", *TO)
ASKED_UDP = ("--errno", "11", "--protocol", "udp", *TO)


def full(world: World) -> list[socket.socket]:
    """A listener that every port of the range has a connection to."""
    world.servers.listen("0.0.0.0", PORT)
    socks = [world.connect() for _ in range(SIZE)]
    world.fails(NOT_AVAILABLE, world.connect)
    return socks


@follows(causes.CONNECTED, "use more source addresses")
def more_addresses(world: World) -> None:
    full(world)
    world.read(*ASKED)
    world.network.add_address("192.0.2.8")
    for _ in range(SIZE):
        world.connect(source=("192.0.2.8", 0), options=(NO_PORT,))


@follows(causes.CONNECTED, "use fewer")
def fewer_connections(world: World) -> None:
    socks = full(world)
    world.read(*ASKED)
    socks.pop().close()
    world.connect()


@follows(causes.CONNECTED, "spread over more destination")
def more_destinations(world: World) -> None:
    full(world)
    world.servers.listen("0.0.0.0", PORT + 1)
    world.read(*ASKED)
    world.connect((HERE[0], PORT + 1))
    world.connect(OTHER)


@follows(causes.CONNECTED, "widen")
def wider_range(world: World) -> None:
    """A service that runs keeps its port for a restart; one that does not may lose it."""
    full(world)
    # All that the wider range adds but two ports, of which a service that runs has one.
    world.network.port_range(65_500, 65_533)
    world.network.sysctl("net.ipv4.ip_unprivileged_port_start", 65_500)
    for _ in range(34):
        world.connect()
    service = world.servers.listen("127.0.0.1", 65_534)
    world.follow(*ASKED)
    assert world.network.namespace.get_sysctl("net.ipv4.ip_local_port_range") == "65500\t65535"
    service.close()
    assert world.connect().getsockname()[1] == 65_535
    world.fails(NOT_AVAILABLE, world.connect)
    # It starts again.
    world.servers.listen("127.0.0.1", 65_534)
    world.fails(IN_USE, world.servers.listen, "127.0.0.1", 65_535)


def rested(world: World) -> socket.socket:
    listener = world.servers.listen("0.0.0.0", PORT)
    world.network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    return listener


@follows(causes.TIME_WAIT, "keep connections open longer")
def the_peer_closes_first(world: World) -> None:
    listener = rested(world)
    for _ in range(SIZE):
        leave_time_wait(listener)
    world.fails(NOT_AVAILABLE, world.connect)
    world.read(*ASKED)
    # To another destination, so that the range is not used up before.
    for _ in range(2 * SIZE):
        with socket.create_connection(OTHER) as sock:
            accepted, _ = limits.accept(listener)
            accepted.close()
            assert limits.receive(sock) == b""


@follows(causes.TIME_WAIT, "set net.ipv4.tcp_tw_reuse")
def reuse(world: World) -> None:
    """What a peer without timestamps has left stays, and what has them is a second old."""
    listener = rested(world)
    world.network.sysctl("net.ipv4.tcp_timestamps", 0)
    kept = leave_time_wait(listener)
    world.network.sysctl("net.ipv4.tcp_timestamps", 1)
    for _ in range(SIZE - 1):
        leave_time_wait(listener)
    world.fails(NOT_AVAILABLE, world.connect)
    world.follow(*ASKED)
    taken = set()
    for _ in range(SIZE - 1):
        sock = limits.until(lambda: tried(world), "a TIME_WAIT that is a second old")
        taken.add(sock.getsockname()[1])
    assert kept not in taken
    world.fails(NOT_AVAILABLE, world.connect)


def tried(world: World, to: tuple[str, int] = HERE) -> socket.socket | None:
    with contextlib.ExitStack() as failed:
        sock = failed.enter_context(socket.socket())
        if number := sock.connect_ex(to):
            assert number == NOT_AVAILABLE
            return None
        reset_on_close(sock)
        failed.pop_all()
    return world.closing.enter_context(sock)


@follows(causes.TIMESTAMPS_OFF, "switch them on")
def timestamps(world: World) -> None:
    """The segments are smaller by the option's 12 octets."""
    world.run("ip link set lo mtu 1500")
    listener = world.servers.listen("0.0.0.0", PORT)
    world.network.sysctl("net.ipv4.tcp_timestamps", 0)
    for _ in range(SIZE):
        leave_time_wait(listener)
    world.fails(NOT_AVAILABLE, world.connect)
    most = world.connect(OTHER).getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    world.follow()
    limits.accept(listener)[0].close()
    to = ("127.0.0.8", PORT)
    for _ in range(SIZE):
        leave_time_wait(listener, to)
    for _ in range(SIZE):
        sock = limits.until(lambda: tried(world, to), "a TIME_WAIT that is a second old")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == most - 12


def held(world: World) -> list[socket.socket]:
    """Listeners on all ports of the range but one, and a bound connection on the last."""
    world.servers.listen("0.0.0.0", PORT)
    services = [world.servers.listen("127.0.0.7", port) for port in range(LOW, HIGH)]
    services.append(world.connect(OTHER, ("127.0.0.7", 0)))
    world.fails(NOT_AVAILABLE, world.connect)
    return services


@follows(causes.HELD, "in programs that bind a source address")
def no_port(world: World) -> None:
    *_, bound = held(world)
    world.read(*ASKED)
    bound.close()
    world.connect(OTHER, ("127.0.0.7", 0), (NO_PORT,))
    world.connect()


@follows(causes.HELD, "have services listen")
def services_elsewhere(world: World) -> None:
    first, *_ = held(world)
    world.read(*ASKED)
    first.close()
    world.servers.listen("127.0.0.7", LOW - 1)
    world.connect()


@follows(causes.HELD, "widen")
def a_wider_range_beside_services(world: World) -> None:
    held(world)
    world.follow(*ASKED)
    reserved = world.network.namespace.get_sysctl("net.ipv4.ip_local_reserved_ports")
    assert reserved == f"{LOW}-{HIGH - 1}"
    world.connect()


def held_by_udp(world: World) -> list[socket.socket]:
    """Plain UDP sockets toward another destination on every port of the range."""
    socks = [world.connect(OTHER, kind=UDP) for _ in range(SIZE)]
    world.fails(AGAIN, world.connect, kind=UDP)
    return socks


@follows(causes.HELD_DATAGRAM, "open them with connectx")
def udp_by_connectx(world: World) -> None:
    socks = held_by_udp(world)
    world.read(*ASKED_UDP)
    for sock in socks:
        sock.close()
    for to in (OTHER, HERE):
        for _ in range(SIZE):
            world.closing.enter_context(connectx.create_connection(to, type=UDP))


@follows(causes.HELD_DATAGRAM, "have services listen")
def udp_services_elsewhere(world: World) -> None:
    first, *_ = held_by_udp(world)
    world.read(*ASKED_UDP)
    first.close()
    service = world.closing.enter_context(socket.socket(type=UDP))
    service.bind(("127.0.0.1", LOW - 1))
    world.connect(kind=UDP)


@follows(causes.HELD_DATAGRAM, "widen")
def a_wider_range_for_udp(world: World) -> None:
    service = world.closing.enter_context(socket.socket(type=UDP))
    service.bind(("127.0.0.1", 11211))
    held_by_udp(world)
    world.follow(*ASKED_UDP)
    assert world.network.namespace.get_sysctl("net.ipv4.ip_local_reserved_ports") == "11211"
    world.connect(kind=UDP)


@follows(causes.RESERVED, "reserve only")
def reserve_less(world: World) -> None:
    world.servers.listen("127.0.0.1", PORT)
    world.network.reserved_ports(f"{LOW}-{HIGH},{PORT}")
    world.fails(NOT_AVAILABLE, world.connect)
    world.read(*ASKED)
    world.network.reserved_ports(f"{PORT}")
    world.connect()


@follows(causes.FREED, "try again")
def again(world: World) -> None:
    socks = full(world)
    with pytest.raises(connectx.PortsExhausted) as caught:
        connectx.create_connection(HERE)
    socks[0].close()
    world.explained(caught.value)
    world.closing.enter_context(connectx.create_connection(HERE))


def on_one_tuple(world: World) -> connectx.ConnectxError:
    world.servers.listen("127.0.0.1", PORT)
    world.connect(source=("127.0.0.1", LOW), options=(SHARED,))
    with pytest.raises(connectx.TupleInUse) as caught:
        connectx.create_connection(HERE, source_address=("127.0.0.1", LOW))
    world.explained(caught.value)
    world.read("--errno", "99", *TO, "--source", f"127.0.0.1:{LOW}")
    return caught.value


def from_other_ports(world: World) -> None:
    """Connect from another port by number, and from any."""
    for port in (LOW + 1, 0):
        source = ("127.0.0.1", port)
        world.closing.enter_context(connectx.create_connection(HERE, source_address=source))


def find(world: World, port: int) -> None:
    """Run the commands of the text, with the port, as it says."""
    *listings, condition = world.commands_in_text()
    condition = condition.replace("PORT", str(port))
    found = "".join(world.run(f"{listing} -p {condition}") for listing in listings)
    assert f"127.0.0.1:{port} " in found
    assert f"pid={os.getpid()}," in found


@follows(causes.TUPLE_IN_USE, "ask for another source port")
def another_tuple(world: World) -> None:
    on_one_tuple(world)
    from_other_ports(world)


@follows(causes.TUPLE_IN_USE, "find the socket")
def find_the_socket(world: World) -> None:
    on_one_tuple(world)
    find(world, LOW)


def on_one_port(world: World) -> socket.socket:
    world.servers.listen("127.0.0.1", PORT)
    service = world.servers.listen("127.0.0.1", LOW)
    with pytest.raises(connectx.PortHeld) as caught:
        connectx.create_connection(HERE, source_address=("127.0.0.1", LOW))
    world.explained(caught.value)
    world.read("--errno", "98", "--source", f"127.0.0.1:{LOW}")
    return service


@follows(causes.PORT_HELD, "ask for another source port")
def another_port(world: World) -> None:
    on_one_port(world)
    from_other_ports(world)


@follows(causes.PORT_HELD, "find the owner")
def find_the_owner(world: World) -> None:
    on_one_port(world)
    find(world, LOW)


@follows(causes.PORT_HELD, "reserve the ports")
def reserve_what_is_asked_for(world: World) -> None:
    holder = on_one_port(world)
    world.follow("--errno", "98", "--source", f"127.0.0.1:{LOW}")
    holder.close()
    for _ in range(SIZE - 1):
        world.connect()
    world.fails(NOT_AVAILABLE, world.connect)
    world.connect(source=("127.0.0.1", LOW))


def left_behind(world: World, port: int = LOW, *options: tuple[int, int, int]) -> None:
    """A server's TIME_WAITs, after it has closed first and ended."""
    listener = bound(world, port, *options)
    listener.listen()
    with socket.create_connection(("127.0.0.1", port)) as client:
        server, _ = limits.accept(listener)
        server.shutdown(socket.SHUT_WR)
        assert limits.receive(client) == b""
        client.close()
        assert limits.receive(server) == b""
        server.close()
    listener.close()
    world.fails(IN_USE, bound, world, port)
    world.read("--errno", "98", "--source", f"127.0.0.1:{port}")


def bound(world: World, port: int, *options: tuple[int, int, int]) -> socket.socket:
    sock = world.closing.enter_context(socket.socket())
    for option in options:
        sock.setsockopt(*option)
    sock.bind(("127.0.0.1", port))
    return sock


@follows(causes.PORT_LEFT, "in the program that binds the port")
def reuseaddr(world: World) -> None:
    """It helps from the next time on: what an earlier run has left without it stays."""
    left_behind(world)
    world.fails(IN_USE, bound, world, LOW, SHARED)
    left_behind(world, LOW + 1, SHARED)
    bound(world, LOW + 1, SHARED).listen()


@follows(causes.PORT_LEFT, "until then, close")
def closed(world: World) -> None:
    left_behind(world)
    world.follow("--errno", "98", "--source", f"127.0.0.1:{LOW}")
    bound(world, LOW)


@follows(causes.PORT_LEFT, "wait a minute")
def a_port_without_time_wait(world: World) -> None:
    left_behind(world)
    bound(world, LOW + 1)


@follows(causes.BOUND_FIRST, "in programs that bind a source address")
def not_bound_first(world: World) -> None:
    world.servers.listen("0.0.0.0", PORT)
    socks = [world.connect(OTHER, ("127.0.0.7", 0)) for _ in range(SIZE)]
    world.fails(NOT_AVAILABLE, world.connect)
    world.read(*ASKED)
    for sock in socks:
        sock.close()
        world.connect(OTHER, ("127.0.0.7", 0), (NO_PORT,))
    world.connect()


def explicit_binds(world: World) -> list[socket.socket]:
    world.servers.listen("0.0.0.0", PORT)
    socks = []
    for port in range(LOW, HIGH + 1):
        socks.append(world.closing.enter_context(socket.socket()))
        socks[-1].bind(("127.0.0.7", port))
    world.fails(NOT_AVAILABLE, world.connect)
    world.read(*ASKED)
    return socks


@follows(causes.POLLUTED, "in programs that bind a source address")
def not_by_number(world: World) -> None:
    for sock in explicit_binds(world):
        sock.close()
        world.connect(OTHER, ("127.0.0.7", 0), (NO_PORT,))
    world.connect()


@follows(causes.POLLUTED, "for programs that ask for ports by number")
def a_range_for_numbers(world: World) -> None:
    for sock in explicit_binds(world):
        sock.close()
    world.network.reserved_ports(f"{LOW}-{LOW + 9}")
    for port in range(LOW, LOW + 10):
        world.connect(OTHER, ("127.0.0.7", port))
    for _ in range(SIZE - 10):
        world.connect()


@follows(causes.LISTENERS, "reserve the ports")
def reserve_a_service(world: World) -> None:
    """The service finds its port after a restart, and connections have one less."""
    world.servers.listen("127.0.0.1", PORT)
    world.network.reserved_ports("80")
    kept = world.connect().getsockname()[1]
    service = next(port for port in range(LOW, HIGH + 1) if port != kept)
    listener = world.servers.listen("127.0.0.1", service)
    world.follow()
    reserved = world.network.namespace.get_sysctl("net.ipv4.ip_local_reserved_ports")
    assert reserved == f"80,{service}"
    listener.close()
    for _ in range(SIZE - 2):
        world.connect()
    world.fails(NOT_AVAILABLE, world.connect)
    world.servers.listen("127.0.0.1", service)


@follows(causes.NOT_HONOURED, "widen the range")
def include_the_window(world: World) -> None:
    """A window is used once it is in the range; an idle service's port may be, too."""
    world.servers.listen("0.0.0.0", PORT)
    service = world.servers.listen("127.0.0.1", LOW - 5)
    dialer = connectx.Dialer(ports=(LOW - 6, LOW + 3))
    world.fails(errno.EINVAL, dialer.connectx, world.closing.enter_context(socket.socket()), HERE)
    world.follow("--errno", "EINVAL", *TO, "--port-range", f"{LOW - 6}-{LOW + 3}")
    service.close()

    def dial() -> socket.socket | None:
        sock = world.closing.enter_context(socket.socket())
        try:
            dialer.connectx(sock, HERE)
        except connectx.RangeNotHonoured:
            # What it knows of the range is at most a second old.
            return None
        return sock

    ports = {limits.until(dial, "the new range").getsockname()[1] for _ in range(9)}
    assert ports == {*range(LOW - 6, LOW + 4)} - {LOW - 5}
    for _ in range(SIZE + 5):
        world.connect(OTHER)
    world.servers.listen("127.0.0.1", LOW - 5)
    world.fails(IN_USE, world.servers.listen, "127.0.0.1", LOW - 6)


@follows(causes.NOT_HONOURED, "ask for ports within")
def a_window_within(world: World) -> None:
    world.servers.listen("127.0.0.1", PORT)
    asked = PortRange(LOW - 5, LOW + 3)
    sock = world.closing.enter_context(socket.socket())
    world.fails(errno.EINVAL, connectx.Dialer(ports=asked).connectx, sock, HERE)
    world.read("--errno", "EINVAL", *TO, "--port-range", str(asked))
    connectx.Dialer(ports=(LOW, LOW + 3)).connectx(sock, HERE)


@follows(causes.NOT_HONOURED, "have connectx make the socket")
def a_socket_that_is_bound(world: World) -> None:
    world.servers.listen("127.0.0.1", PORT)
    dialer = connectx.Dialer(ports=(LOW - 5, LOW - 1))
    sock = world.closing.enter_context(socket.socket())
    world.fails(errno.EINVAL, dialer.connectx, sock, HERE)
    world.read("--errno", "EINVAL", *TO, "--port-range", f"{LOW - 5}-{LOW - 1}")
    ports = {
        world.closing.enter_context(dialer.create_connection(HERE)).getsockname()[1]
        for _ in range(5)
    }
    assert ports == {*range(LOW - 5, LOW)}


@follows(causes.UNSHARED, "open them with connectx")
def shared(world: World) -> None:
    socks = held_by_udp(world)
    world.read("--errno", "11", "--protocol", "udp")
    for sock in socks:
        sock.close()
    for to in (OTHER, HERE):
        for _ in range(SIZE):
            world.closing.enter_context(connectx.create_connection(to, type=UDP))


@follows(causes.UNSHARED, "use one unconnected socket")
def one_socket(world: World) -> None:
    first, second, *_ = held_by_udp(world)
    world.read("--errno", "11", "--protocol", "udp")
    first.close()
    second.close()
    receivers = [world.closing.enter_context(socket.socket(type=UDP)) for _ in range(2)]
    sender = world.closing.enter_context(socket.socket(type=UDP))
    for sock, to in zip(receivers, (OTHER, HERE), strict=True):
        sock.bind(to)
        sender.sendto(b"x", to)
        assert limits.receive(sock) == b"x"
    world.connect(kind=UDP)


@follows(causes.UNSHARED, "widen")
def a_wider_range_for_a_resolver(world: World) -> None:
    """A name is not found where UDP has no port left: getaddrinfo() calls that EAI_AGAIN."""
    server = world.closing.enter_context(socket.socket(type=UDP))
    server.bind(("127.0.0.1", 53))
    held_by_udp(world)
    if looked_up(world) is None:
        pytest.skip("needs a mount namespace, for a resolv.conf of its own")
    assert looked_up(world) == socket.EAI_AGAIN
    question = ("--errno", "EAI_AGAIN", "--destination", f"127.0.0.1:{PORT}")
    assert "a resolver here, which asks over UDP" in " ".join(world.ask(*question).split())
    world.follow(*question)
    with limits.in_background(lambda: answer_names(server), server):
        assert looked_up(world) == 0


def looked_up(world: World) -> int | None:
    """Look up a name at 127.0.0.1; the number of the error, None if that cannot be tried."""
    del world
    with tempfile.NamedTemporaryFile("w") as conf:
        conf.write("nameserver 127.0.0.1\n")
        conf.flush()
        done = subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c"),
                'mount --bind "$0" /etc/resolv.conf || exit 99; exec "$@"',
                *(conf.name, sys.executable, "-c", _LOOK_UP),
            ],
            check=False,
            timeout=limits.COMMAND_LIMIT,
        )
    if done.returncode in (1, 99):
        return None
    return 100 - done.returncode if done.returncode else 0


_LOOK_UP = """
import socket, sys
try:
    socket.getaddrinfo("db.example", 443, socket.AF_INET, socket.SOCK_STREAM)
except socket.gaierror as error:
    sys.exit(100 - error.errno)
"""


def answer_names(server: socket.socket) -> None:
    """Answer one question with an address, whatever it asks (RFC 1035)."""
    question, sender = limits.receive_from(server, 512)
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + bytes([127, 0, 0, 1])
    header = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
    name_and_type = question[12 : question.index(b"\0", 12) + 5]
    server.sendto(header + name_and_type + answer, sender)


def overshadowed(world: World) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A peer, and two sockets on one 4-tuple, of which the newer gets everything."""
    peer = world.closing.enter_context(socket.socket(type=UDP))
    peer.bind(HERE)
    older, newer = (
        world.connect(source=("127.0.0.1", LOW), options=(SHARED,), kind=UDP) for _ in range(2)
    )
    peer.sendto(b"x", ("127.0.0.1", LOW))
    assert limits.receive(newer) == b"x"
    older.settimeout(0)
    world.fails(AGAIN, older.recv, 1)
    world.read("--protocol", "udp")
    return peer, older, newer


@follows(causes.OVERSHADOWED, "open them with connectx")
def opened_by_connectx(world: World) -> None:
    _, older, newer = overshadowed(world)
    older.close()
    newer.close()
    source = ("127.0.0.1", LOW)
    world.closing.enter_context(connectx.create_connection(HERE, source_address=source, type=UDP))
    with pytest.raises(connectx.TupleInUse):
        connectx.create_connection(HERE, source_address=source, type=UDP)
    world.fails(IN_USE, world.connect, source=source, kind=UDP)


@follows(causes.OVERSHADOWED, "close the older one")
def the_older_one_closed(world: World) -> None:
    peer, older, newer = overshadowed(world)
    older.close()
    peer.sendto(b"y", ("127.0.0.1", LOW))
    assert limits.receive(newer) == b"y"
