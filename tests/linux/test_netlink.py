import contextlib
import errno
import gc
import os
import socket
import sys
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectx.linux import netns, uapi
from connectx.linux.netlink import (
    DumpInterrupted,
    MalformedMessage,
    NetlinkError,
    NetlinkSocket,
    Run,
    messages,
    runs,
    status,
)
from connectx.linux.sock_diag import encode_lookup
from connectx.linux.socket_dump import Filter, encode_dump
from connectx.linux.structs import NETLINK_STATUS, NLMSGHDR
from connectx.sandbox.networks import Network
from tests.linux.captures.replay import (
    RECORD,
    SEQUENCE,
    datagrams,
    done,
    message,
    names,
    refusal,
    replaying,
)

LOOPBACK = socket.inet_aton("127.0.0.1")
DUMP = encode_dump(uapi.AF_INET, uapi.AF_INET, Filter(uapi.IPPROTO_UDP))


def split(run: Run) -> list[tuple[int, int, int, bytes]]:
    """The messages of a run, as tuples."""
    return [
        (run.type, run.flags, run.sequence, bytes(run.messages[at : at + run.stride]))
        for at in range(0, len(run.messages), run.stride)
    ]


def whole(buffer: bytes) -> list[tuple[int, int, int, bytes]]:
    """What `runs` must yield, worked out with `messages`."""
    found = []
    at = 0
    for kind, flags, sequence, payload in messages(buffer):
        size = NLMSGHDR.size + len(payload) + 3 & ~3
        found.append((kind, flags, sequence, buffer[at : at + size]))
        at += size
    return found


# Framing.


@pytest.mark.parametrize("name", names())
def test_captures_are_well_formed(name: str) -> None:
    for datagram in datagrams(name):
        found = list(messages(datagram))
        assert found
        assert all(each.sequence == SEQUENCE for each in found)
        assert [each for run in runs(datagram) for each in split(run)] == whole(datagram)


def test_alike_messages_make_one_run() -> None:
    (first, *_) = datagrams("dump-udp")
    found = list(runs(first))
    assert [run.type for run in found] == [uapi.SOCK_DIAG_BY_FAMILY]
    assert len(split(found[0])) > 20


@pytest.mark.parametrize(
    "buffer",
    [
        bytes(15),
        NLMSGHDR.pack(15, 20, 0, 1, 0),
        NLMSGHDR.pack(17, 20, 0, 1, 0),
        NLMSGHDR.pack(0, 20, 0, 1, 0),
        NLMSGHDR.pack(0xFFFFFFFF, 20, 0, 1, 0),
        RECORD + bytes(3),
        RECORD + NLMSGHDR.pack(0, 20, 0, 1, 0),
        RECORD[:-1],
    ],
)
def test_malformed(buffer: bytes) -> None:
    with pytest.raises(MalformedMessage):
        list(messages(buffer))
    with pytest.raises(MalformedMessage):
        list(runs(buffer))


def test_the_last_message_may_lack_its_padding() -> None:
    buffer = RECORD + NLMSGHDR.pack(17, 20, 0, SEQUENCE, 0) + b"x"
    assert [bytes(each.payload) for each in messages(buffer)] == [bytes(72), b"x"]
    assert [each for run in runs(buffer) for each in split(run)] == whole(buffer)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A captured datagram, or several, with a few octets changed, removed or repeated."""
    captured = [datagram for name in names() for datagram in datagrams(name)]
    octets = bytearray().join(draw(st.lists(st.sampled_from(captured), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 4))):
        # Header fields as often as all other octets.
        at = draw(st.integers(0, 15) | st.integers(0, max(len(octets) - 1, 0)))
        change = draw(st.sampled_from(["set", "cut", "remove", "repeat"]))
        if change == "set":
            octets[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "cut":
            del octets[at:]
        elif change == "remove":
            del octets[at : at + draw(st.integers(1, 100))]
        else:
            octets[at:at] = octets[at : at + draw(st.integers(1, 100))]
    return bytes(octets)


@given(mutated() | st.binary(max_size=200))
@example(b"")
def test_framing_ends_and_raises_nothing_else(buffer: bytes) -> None:
    try:
        expected = whole(buffer)
    except MalformedMessage:
        with pytest.raises(MalformedMessage):
            list(runs(buffer))
    else:
        assert [each for run in runs(buffer) for each in split(run)] == expected


@given(st.lists(mutated(), max_size=3))
def test_the_socket_ends_and_raises_nothing_else(replies: list[bytes]) -> None:
    with replaying(replies) as netlink, contextlib.suppress(MalformedMessage, OSError):
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")
    with replaying(replies) as netlink, contextlib.suppress(MalformedMessage, OSError):
        list(netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, b""))


@pytest.mark.parametrize("value", [1, -4096, -(2**31)])
def test_a_status_is_an_errno_or_zero(value: int) -> None:
    with pytest.raises(MalformedMessage):
        status(memoryview(NETLINK_STATUS.pack(value)))


# One request, one answer.


def test_request_gives_the_payload() -> None:
    with replaying(datagrams("lookup-udp-found")) as netlink:
        payload = netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")
    assert payload[:2] == bytes([uapi.AF_INET, uapi.TCP_ESTABLISHED])


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPERM, errno.EAGAIN])
def test_a_refusal_is_an_error_with_the_kernels_errno(number: int) -> None:
    with replaying([refusal(number)]) as netlink, pytest.raises(NetlinkError) as caught:
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")
    assert caught.value.errno == number
    assert not isinstance(caught.value, BlockingIOError), "that would mean: in progress"


def test_an_acknowledgement_is_no_answer() -> None:
    with replaying([refusal(0)]) as netlink, pytest.raises(MalformedMessage):
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")


def test_replies_to_earlier_requests_are_skipped() -> None:
    stale = message(uapi.SOCK_DIAG_BY_FAMILY, b"stale...", sequence=SEQUENCE + 1)
    with replaying([stale, *datagrams("lookup-udp-found")]) as netlink:
        assert len(netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")) > 72


def test_no_reply_is_an_error_after_a_few_attempts() -> None:
    with replaying([]) as netlink, pytest.raises(NetlinkError) as caught:
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")
    assert caught.value.errno == errno.EPROTO


def test_a_truncated_reply_is_noticed() -> None:
    with (
        replaying([bytes(40000)]) as netlink,
        pytest.raises(MalformedMessage, match="8192 octets or more"),
    ):
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")


# Dumps.


def test_dump_yields_every_message() -> None:
    with replaying(datagrams("dump-udp")) as netlink:
        found = [each for run in netlink.dump(20, b"") for each in split(run)]
    assert len(found) == 60


@pytest.mark.parametrize(
    "replies, error, number",
    [
        ([RECORD, done(errno.ENOENT)], NetlinkError, errno.ENOENT),
        ([RECORD + refusal(errno.EBUSY)], NetlinkError, errno.EBUSY),
        ([RECORD, done(flags=uapi.NLM_F_DUMP_INTR)], DumpInterrupted, errno.EINTR),
        ([RECORD, message(uapi.NLMSG_OVERRUN)], DumpInterrupted, errno.ENOBUFS),
        ([RECORD], DumpInterrupted, errno.ENOBUFS),
    ],
)
def test_a_dump_that_failed_is_an_error(
    replies: list[bytes], error: type[NetlinkError], number: int
) -> None:
    with replaying(replies) as netlink, pytest.raises(NetlinkError) as caught:
        list(netlink.dump(20, b""))
    assert type(caught.value) is error
    assert caught.value.errno == number


def test_an_interrupted_dump_is_read_to_its_end() -> None:
    """Otherwise its remains would precede the next reply."""
    marked = message(uapi.SOCK_DIAG_BY_FAMILY, bytes(72), uapi.NLM_F_DUMP_INTR)
    with replaying([marked, RECORD, done()]) as netlink:
        with pytest.raises(DumpInterrupted):
            list(netlink.dump(20, b""))
        with pytest.raises(BlockingIOError):
            netlink.recv(1)


# With the real kernel.


@pytest.fixture
def netlink(network: Network, closing: contextlib.ExitStack) -> NetlinkSocket:  # noqa: ARG001
    return closing.enter_context(NetlinkSocket(uapi.NETLINK_SOCK_DIAG))


def test_an_unknown_request_is_refused(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError) as caught:
        netlink.request(0x7F, b"")
    assert caught.value.errno == errno.EINVAL


def test_the_kernel_keeps_other_senders_out(netlink: NetlinkSocket) -> None:
    port_id, _ = netlink._socket.getsockname()
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_SOCK_DIAG) as stranger,
        pytest.raises(ConnectionRefusedError),
    ):
        stranger.sendto(message(uapi.SOCK_DIAG_BY_FAMILY), (port_id, 0))


def test_an_abandoned_dump_is_not_in_the_way(
    netlink: NetlinkSocket, closing: contextlib.ExitStack
) -> None:
    for _ in range(200):
        sock = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
    for _ in range(3):
        dump = netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, DUMP)
        next(dump)
        dump.close()  # type: ignore[attr-defined]
    found = [each for run in netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, DUMP) for each in split(run)]
    assert len(found) == 200


def test_a_full_receive_buffer_is_survived(netlink: NetlinkSocket) -> None:
    lookup = encode_lookup(uapi.IPPROTO_UDP, uapi.AF_INET, LOOPBACK, 1, LOOPBACK, 2)
    netlink._socket.setsockopt(uapi.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(100):
        netlink._send(uapi.SOCK_DIAG_BY_FAMILY, 0, lookup)
    with pytest.raises(NetlinkError) as caught:
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, lookup)
    assert caught.value.errno == errno.ENOENT


def test_a_dump_into_a_full_receive_buffer_is_interrupted(netlink: NetlinkSocket) -> None:
    lookup = encode_lookup(uapi.IPPROTO_UDP, uapi.AF_INET, LOOPBACK, 1, LOOPBACK, 2)
    netlink._socket.setsockopt(uapi.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(100):
        netlink._send(uapi.SOCK_DIAG_BY_FAMILY, 0, lookup)
    with pytest.raises(DumpInterrupted) as caught:
        list(netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, DUMP))
    assert caught.value.errno == errno.ENOBUFS
    assert list(netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, DUMP)) == []


def test_netns_cookie_is_the_sockets_namespaces(netlink: NetlinkSocket) -> None:
    cookie = netlink.netns_cookie
    if cookie is None:
        pytest.skip("kernel: no SO_NETNS_COOKIE")
    with socket.socket() as sock:
        value = sock.getsockopt(uapi.SOL_SOCKET, uapi.SO_NETNS_COOKIE, 8)
    assert cookie == int.from_bytes(value, sys.byteorder)
    with netns.private_network(), NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as other:
        assert netlink.netns_cookie == cookie
        assert other.netns_cookie != cookie


def test_closed(netlink: NetlinkSocket) -> None:
    assert not netlink.closed
    netlink.close()
    netlink.close()
    assert netlink.closed
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        netlink.request(uapi.SOCK_DIAG_BY_FAMILY, b"")
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        list(netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, DUMP))


def test_a_dropped_socket_closes_without_a_warning(network: Network) -> None:  # noqa: ARG001
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NetlinkSocket(uapi.NETLINK_SOCK_DIAG)
        gc.collect()


def test_not_inherited(netlink: NetlinkSocket) -> None:
    assert not os.get_inheritable(netlink._socket.fileno())


def test_a_protocol_that_does_not_exist_is_refused(network: Network) -> None:  # noqa: ARG001
    with pytest.raises(OSError, match=os.strerror(errno.EPROTONOSUPPORT)):
        NetlinkSocket(31)
