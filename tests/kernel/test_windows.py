"""IP_LOCAL_PORT_RANGE: what a window does, and when the kernel ignores it."""

import contextlib
import errno
import os
import socket
import struct
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests.kernel.raw import (
    AGAIN,
    DATAGRAMS,
    FIRST,
    INUSE,
    NOTAVAIL,
    OK,
    STREAMS,
    TCP,
    TCP6,
    UDP,
    UDP6,
    Sockets,
    Technique,
    Transport,
    kernel_release,
    set_window,
)

LOW, HIGH = 20001, 20008
SIZE: Final = HIGH - LOW + 1
ALL: Final = (*STREAMS, *DATAGRAMS)

# What the library sets: both ends lie outside of any range in force, or on its ends.
SYSCTL_ENDS: Final = (1, 65535)


@pytest.fixture(autouse=True)
def _eight_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


def exhausted(transport: Transport) -> str:
    return NOTAVAIL if transport.type == socket.SOCK_STREAM else AGAIN


def exhausted_errno(transport: Transport) -> int:
    return errno.EADDRNOTAVAIL if transport.type == socket.SOCK_STREAM else errno.EAGAIN


def ports_taken(sockets: Sockets, technique: Technique, *, limit: int = 2 * SIZE) -> list[int]:
    """Open connections until none is left, and say from which ports, in order."""
    count, outcome = sockets.fill(technique, FIRST, limit=limit)
    assert outcome == exhausted(sockets.transport)
    return [sock.getsockname()[1] for sock in sockets.opened[-count:]]


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize(
    "window, low, high",
    [
        pytest.param((20003, 20006), 20003, 20006, id="inside"),
        pytest.param((LOW, HIGH), LOW, HIGH, id="the range itself"),
        pytest.param((0, 20006), LOW, 20006, id="0 is the range's low end"),
        pytest.param((20003, 0), 20003, HIGH, id="0 is the range's high end"),
        pytest.param((19000, 20006), LOW, 20006, id="low end outside"),
        pytest.param((20003, 60000), 20003, HIGH, id="high end outside"),
        pytest.param((19000, 60000), LOW, HIGH, id="both ends outside"),
        pytest.param((19000, 19999), LOW, HIGH, id="below"),
        pytest.param((30000, 30007), LOW, HIGH, id="above"),
        pytest.param(SYSCTL_ENDS, LOW, HIGH, id="widest"),
    ],
)
def test_each_end_outside_of_the_range_is_silently_replaced(
    sockets: Sockets, window: tuple[int, int], low: int, high: int
) -> None:
    taken = ports_taken(sockets, Technique("window", window=window))
    assert sorted(taken) == list(range(low, high + 1))


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_the_widest_window_follows_the_sysctl_changed_after_it_was_set(
    sockets: Sockets, network: Network
) -> None:
    waiting = [sockets.bound(Technique("", window=SYSCTL_ENDS)) for _ in range(5)]
    network.port_range(30001, 30004)
    for sock in waiting[:4]:
        sock.connect((sockets.transport.source, FIRST))
    assert sorted(sock.getsockname()[1] for sock in waiting[:4]) == list(range(30001, 30005))
    with pytest.raises(OSError, match=os.strerror(exhausted_errno(sockets.transport))):
        waiting[4].connect((sockets.transport.source, FIRST))


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize("low", [1, 1024])
def test_the_widest_window_reaches_both_ends_of_the_widest_range(
    sockets: Sockets, network: Network, low: int
) -> None:
    network.sysctl("net.ipv4.ip_unprivileged_port_start", low)
    network.port_range(low, 65535)
    # All but five ports reserved, so that "all of them" is quickly reached.
    network.reserved_ports(f"{low + 2}-29999,30001-65533")
    taken = ports_taken(sockets, Technique("window", window=SYSCTL_ENDS))
    assert sorted(taken) == [low, low + 1, 30000, 65534, 65535]


ODD_OUT: Final = [
    Technique("connect"),
    Technique("NO_PORT + bind(ip, 0)", no_port=True, bind=0),
    Technique("bind(ip, 0)", bind=0),
    Technique("window + bind(ip, 0)", window=SYSCTL_ENDS, bind=0),
]


@pytest.mark.parametrize("transport", STREAMS, ids=str)
class TestParity:
    """Without a window connect() tries all ports of the low end's parity before the others."""

    def test_plain_connect_takes_one_parity_first(self, sockets: Sockets) -> None:
        taken = ports_taken(sockets, Technique("connect"))
        assert {port % 2 for port in taken[: SIZE // 2]} == {LOW % 2}
        assert {port % 2 for port in taken[SIZE // 2 :]} == {1 - LOW % 2}

    def test_the_widest_window_counts_as_a_window_so_all_ports_are_tried_in_turn(
        self, sockets: Sockets, network: Network
    ) -> None:
        if kernel_release() < (6, 8):
            pytest.skip("kernel: before 6.8 a window is searched in steps of two, too")
        network.port_range(20001, 20064)
        taken = ports_taken(sockets, Technique("window", window=SYSCTL_ENDS), limit=128)
        # 32 ports of one parity in a row, from random starts: that is no accident.
        assert len({port % 2 for port in taken[:32]}) == 2
        assert sorted(taken) == list(range(20001, 20065))

    @pytest.mark.parametrize("technique", ODD_OUT, ids=str)
    def test_the_last_of_three_ports_is_never_taken_in_steps_of_two(
        self, sockets: Sockets, network: Network, technique: Technique
    ) -> None:
        # A search in steps of two covers an even number of ports: all but one,
        # from a start chosen at random. Of three, the last is always left out.
        network.port_range(LOW, LOW + 2)
        count, _ = sockets.fill(technique, FIRST, limit=2 * SIZE)
        assert sorted(sock.getsockname()[1] for sock in sockets.opened) == [LOW, LOW + 1]
        assert count == 2

    def test_one_of_seven_ports_may_be_left_out_in_steps_of_two(
        self, sockets: Sockets, network: Network
    ) -> None:
        network.port_range(LOW, LOW + 6)
        taken = ports_taken(sockets, Technique("connect"))
        assert len(set(range(LOW, LOW + 7)) - set(taken)) <= 1

    @pytest.mark.parametrize("size", [3, 7])
    def test_a_window_of_odd_size_is_used_to_the_last_port_since_linux_6_8(
        self, sockets: Sockets, size: int
    ) -> None:
        taken = ports_taken(sockets, Technique("window", window=(LOW, LOW + size - 1)))
        if kernel_release() >= (6, 8):
            assert sorted(taken) == list(range(LOW, LOW + size))
        else:
            assert len(taken) >= size - 1

    def test_a_range_of_one_port_is_used(self, sockets: Sockets, network: Network) -> None:
        network.port_range(LOW, LOW)
        assert ports_taken(sockets, Technique("connect")) == [LOW]


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_datagrams_use_odd_sized_ranges_and_windows_to_the_last_port(
    sockets: Sockets, network: Network, size: int
) -> None:
    window = (LOW, LOW + size - 1)
    taken = ports_taken(sockets, Technique("window", window=window))
    assert sorted(taken) == list(range(LOW, LOW + size))
    network.port_range(30001, 30000 + size)
    taken = ports_taken(sockets, Technique("connect"))
    assert sorted(taken) == list(range(30001, 30001 + size))


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize("port", [LOW, 20004, HIGH])
@pytest.mark.parametrize("bind", [None, 0])
def test_a_window_of_one_port_gives_that_port(
    sockets: Sockets, port: int, bind: int | None
) -> None:
    technique = Technique("", no_port=bind is not None, window=(port, port), bind=bind)
    assert sockets.open(technique).getsockname()[:2] == (sockets.transport.source, port)
    assert sockets.outcome(technique) == exhausted(sockets.transport)


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_a_window_works_on_an_ipv6_socket_toward_a_mapped_address(
    sockets: Sockets, closing: contextlib.ExitStack, transport: Transport
) -> None:
    destination = Sockets(TCP if transport is TCP6 else UDP, closing)
    if transport is TCP6:
        listener = destination.bound(Technique("", bind=FIRST))
        listener.listen()
    sock = sockets.bound(Technique("", window=(20004, 20004)))
    sock.connect(("::ffff:127.0.0.1", FIRST))
    assert sock.getsockname()[:2] == ("::ffff:127.0.0.1", 20004)


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_windows_leave_reserved_ports_out(sockets: Sockets, network: Network) -> None:
    network.reserved_ports("20002,20004-20005")
    taken = ports_taken(sockets, Technique("window", window=(20001, 20006)))
    assert sorted(taken) == [20001, 20003, 20006]


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_a_window_on_a_reserved_port_alone_is_refused(sockets: Sockets, network: Network) -> None:
    network.reserved_ports("20004")
    window = (20004, 20004)
    assert sockets.outcome(Technique("", window=window)) == exhausted(sockets.transport)
    assert sockets.outcome(Technique("", window=window, bind=0)) == INUSE


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize("port", [20004, 40000])
def test_an_explicit_bind_heeds_neither_reservation_nor_range_nor_window(
    sockets: Sockets, network: Network, port: int
) -> None:
    network.reserved_ports("20004")
    assert sockets.outcome(Technique("", window=(20006, 20006), bind=port)) == OK


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize(
    "window, low, high",
    [
        pytest.param((20003, 20006), 20003, 20006, id="inside"),
        pytest.param((20004, 20004), 20004, 20004, id="one port"),
        pytest.param((0, LOW), LOW, LOW, id="0 is the range's low end"),
        pytest.param((HIGH, 0), HIGH, HIGH, id="0 is the range's high end"),
        pytest.param((19000, 19999), LOW, HIGH, id="below"),
        pytest.param((30000, 30007), LOW, HIGH, id="above"),
    ],
)
def test_bind_to_port_0_takes_a_window_as_connect_does(
    sockets: Sockets, window: tuple[int, int], low: int, high: int
) -> None:
    """And at once, so that a port is given once: it is not known yet where it will go."""
    technique = Technique("window + bind(ip, 0)", window=window, bind=0)
    socks = [sockets.bound(technique) for _ in range(low, high + 1)]
    assert sorted(sock.getsockname()[1] for sock in socks) == list(range(low, high + 1))
    assert sockets.outcome(technique, FIRST) == INUSE


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize("octets", [0, 2, 3, 5, 8])
def test_a_window_has_four_octets(sockets: Sockets, octets: int) -> None:
    sock = sockets.new()
    set_window(sock, LOW, HIGH)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sock.setsockopt(uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, bytes(octets))
    value = sock.getsockopt(uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, 4)
    assert struct.unpack("@HH", value) == (LOW, HIGH)


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_a_window_is_checked_for_its_order_alone(sockets: Sockets) -> None:
    sock = sockets.new()
    set_window(sock, 0, 0)  # Skips the test where the kernel has none.
    sock = sockets.new()
    assert sock.getsockopt(uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, 4) == bytes(4)
    for low, high in ((2, 1), (65535, 1), (20008, 20001)):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            set_window(sock, low, high)
    for low, high in ((0, 0), (1, 1), (1, 65535), (65535, 65535), (0, 1), (65535, 0)):
        set_window(sock, low, high)
        value = sock.getsockopt(uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, 4)
        assert struct.unpack("@HH", value) == (low, high)


def test_python_takes_no_high_window_as_an_int(closing: contextlib.ExitStack) -> None:
    sock = Sockets(TCP, closing).new()
    with pytest.raises((OverflowError, TypeError)):
        sock.setsockopt(uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, 32768 << 16 | 32768)


@pytest.mark.parametrize("transport", ALL, ids=str)
@pytest.mark.parametrize("bind", [None, 0])
class TestAfterARefusal:
    """A socket whose window was refused is as good as new."""

    @pytest.fixture
    def refused(self, sockets: Sockets, bind: int | None) -> socket.socket:
        technique = Technique("", no_port=bind is not None, window=(20004, 20004), bind=bind)
        sockets.open(technique)
        sock = sockets.bound(technique)
        with pytest.raises(OSError, match=os.strerror(exhausted_errno(sockets.transport))):
            sock.connect((sockets.transport.source, FIRST))
        return sock

    def test_its_port_is_0(self, refused: socket.socket) -> None:
        assert refused.getsockname()[1] == 0

    def test_another_window_can_be_tried(self, sockets: Sockets, refused: socket.socket) -> None:
        set_window(refused, 20005, 20005)
        refused.connect((sockets.transport.source, FIRST))
        assert refused.getsockname()[1] == 20005

    def test_an_explicit_bind_can_be_tried(self, sockets: Sockets, refused: socket.socket) -> None:
        refused.bind((sockets.transport.source, 20005))
        refused.connect((sockets.transport.source, FIRST))
        assert refused.getsockname()[1] == 20005


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_a_bind_without_port_can_be_followed_by_one_with_a_port(sockets: Sockets) -> None:
    sock = sockets.bound(Technique("", reuseaddr=True, no_port=True, bind=0))
    assert sock.getsockname()[1] == 0
    sock.bind((sockets.transport.source, 20005))
    sock.connect((sockets.transport.source, FIRST))
    assert sock.getsockname()[1] == 20005


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_a_bind_without_port_can_be_taken_back(sockets: Sockets) -> None:
    transport = sockets.transport
    sock = sockets.bound(Technique("", no_port=True, bind=0))
    assert sock.getsockname()[:2] == (transport.source, 0)
    sock.bind((transport.wildcard, 0))
    assert sock.getsockname()[:2] == (transport.wildcard, 0)
    sock.connect((transport.source, FIRST))
    assert sock.getsockname()[0] == transport.source


@pytest.mark.parametrize("transport", ALL, ids=str)
def test_a_port_once_given_to_bind_stays(sockets: Sockets) -> None:
    sock = sockets.bound(Technique("", bind=20005))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sock.bind((sockets.transport.source, 20006))
