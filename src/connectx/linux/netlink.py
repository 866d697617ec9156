"""Netlink: framing, sequence numbers, errors, interrupted and truncated dumps.

The framing is pure (`messages`, `runs`, `status`); `NetlinkSocket` does the I/O.
The kernel answers a netlink request before send() returns, and continues a dump
within recv(), so nothing here ever has to wait: the socket is non-blocking, and
a reply that is not there is an error, not a reason to sleep.
"""

from __future__ import annotations

import errno
import os

# The C class, not socket.socket: gevent replaces the latter by one that may switch
# to another greenlet between our request and its reply.
from _socket import socket as _Socket  # noqa: N812
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from connectx.linux.sockopts import get_so_netns_cookie
from connectx.linux.structs import NETLINK_STATUS, NLMSGHDR
from connectx.linux.uapi import (
    AF_NETLINK,
    MSG_TRUNC,
    NETLINK_CAP_ACK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_NETLINK,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The most that netlink_recvmsg lets a dump put into one datagram, however much is offered.
_BUFFER: Final = 32768

#: How often a request whose reply got lost is sent again. Requests only read, so
#: repeating one is harmless.
_ATTEMPTS: Final = 3

#: MAX_ERRNO in include/linux/err.h: the kernel encodes no larger error.
_MAX_ERRNO: Final = 4095


class MalformedMessage(ValueError):  # noqa: N818
    """Bytes that are not netlink messages, or not the ones asked for."""


class NetlinkError(OSError):
    """The kernel refused a netlink request; ``errno`` is the kernel's.

    A class of its own, because ``OSError(EAGAIN, …)`` makes a BlockingIOError,
    which a caller of connect() reads as "in progress".
    """


class DumpInterrupted(NetlinkError):  # noqa: N818
    """A dump is inconsistent (EINTR) or has lost messages (ENOBUFS): repeat it."""


class Message(NamedTuple):
    """One netlink message; its payload stays in the buffer it was received in."""

    type: int
    flags: int
    sequence: int
    payload: memoryview


class Run(NamedTuple):
    """Consecutive messages of equal length, type, flags and sequence.

    messages: the messages with their headers, stride octets each.
    """

    type: int
    flags: int
    sequence: int
    stride: int
    messages: memoryview

    @property
    def first_payload(self) -> memoryview:
        """What the first message has behind its header, without padding."""
        length, *_ = NLMSGHDR.unpack_from(self.messages)
        return self.messages[NLMSGHDR.size : length]


def _header(view: memoryview, offset: int) -> tuple[int, int, int, int]:
    remaining = len(view) - offset
    if remaining < NLMSGHDR.size:
        raise MalformedMessage(f"{remaining} octets at {offset} are too few for nlmsghdr")
    length, kind, flags, sequence, _port_id = NLMSGHDR.unpack_from(view, offset)
    if not NLMSGHDR.size <= length <= remaining:
        raise MalformedMessage(f"nlmsg_len {length} at {offset}, with {remaining} octets left")
    return length, kind, flags, sequence


def messages(buffer: bytes | bytearray | memoryview) -> Iterator[Message]:
    """The messages in a datagram. Raises MalformedMessage where the lengths do not add up."""
    view = memoryview(buffer)
    offset = 0
    while offset < len(view):
        length, kind, flags, sequence = _header(view, offset)
        yield Message(kind, flags, sequence, view[offset + NLMSGHDR.size : offset + length])
        offset += length + 3 & ~3  # NLMSG_ALIGN


def runs(buffer: bytes | bytearray | memoryview) -> Iterator[Run]:
    """The messages in a datagram, alike ones together.

    A dump's messages are nearly all of one length. Taking them as columns of
    one array is what makes decoding them cheaper than the kernel's part of it.
    Raises MalformedMessage as `messages` does.
    """
    view = memoryview(buffer)
    offset = 0
    while offset < len(view):
        length, kind, flags, sequence = _header(view, offset)
        stride = length + 3 & ~3
        count = 1
        if length == stride:
            count = _alike(view[offset:], stride)
        size = min(count * stride, len(view) - offset)
        yield Run(kind, flags, sequence, stride, view[offset : offset + size])
        offset += size


def _alike(view: memoryview, stride: int) -> int:
    """How many messages at the start have the first one's length, type, flags and sequence."""
    count, step = 1, 1
    available = len(view) // stride
    words = view[: available * stride].cast("I")
    first = words[0], words[1], words[2]
    # Doubling, so that the cost is in proportion to the run and not to the datagram.
    while count < available:
        step = min(2 * step, available - count)
        start, stop, words_each = count * stride // 4, (count + step) * stride // 4, stride // 4
        for field, expected in enumerate(first):
            column = words[start + field : stop : words_each].tolist()
            if column.count(expected) != step:
                return count
        count += step
    return count


def status(payload: memoryview) -> int:
    """The errno in the payload of NLMSG_ERROR or NLMSG_DONE, 0 for success."""
    if len(payload) < NETLINK_STATUS.size:
        raise MalformedMessage(f"a status of {len(payload)} octets")
    (value,) = NETLINK_STATUS.unpack_from(payload)
    if not -_MAX_ERRNO <= value <= 0:
        raise MalformedMessage(f"a status of {value}")
    return -int(value)


def failure(payload: memoryview) -> NetlinkError:
    """The exception for the payload of an NLMSG_ERROR that nobody asked to acknowledge."""
    number = status(payload)
    if number == 0:
        raise MalformedMessage("an acknowledgement where an answer was due")
    return NetlinkError(number, os.strerror(number))


class NetlinkSocket:
    """A netlink socket that exchanges messages with the kernel only.

    For one thread at a time, and not to be used across a fork: two users of one
    socket would take each other's replies. It works in the network namespace
    that the opening thread was in, wherever the thread goes afterwards.

    send, recv: the socket's own methods, for callers who count nanoseconds.
    next_sequence: gives a sequence number that no reply still queued carries.

    Raises OSError: EPROTONOSUPPORT where the kernel lacks the protocol, EMFILE …
    """

    __slots__ = ("_socket", "next_sequence", "recv", "send")

    send: Callable[[bytes], int]
    recv: Callable[[int], bytes]
    next_sequence: Callable[[], int]

    def __init__(self, protocol: int) -> None:
        self._socket = _Socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        self._socket.settimeout(0)
        # Connected to port id 0, the kernel refuses (ECONNREFUSED, netlink_getsockbyportid)
        # what any other process sends here, so no reply's sender needs checking.
        self._socket.connect((0, 0))
        # An error then comes without the request, and can be told by its length.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.send = self._socket.send
        self.recv = self._socket.recv
        # C all the way, hence atomic and quick; starts again after 2**32 - 1.
        self.next_sequence = chain.from_iterable(repeat(range(1, 1 << 32))).__next__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Owners drop a socket whose thread has ended or been interrupted; that is
        # no leak, and _socket's ResourceWarning would call it one.
        if hasattr(self, "_socket"):
            self._socket.close()

    def close(self) -> None:
        """Close the socket; what is called on it afterwards raises OSError (EBADF)."""
        self._socket.close()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._socket.fileno() < 0

    @property
    def netns_cookie(self) -> int | None:
        """SO_NETNS_COOKIE of the namespace it works in; None before Linux 5.14."""
        return get_so_netns_cookie(self._socket)

    def request(self, kind: int, payload: bytes) -> bytes:
        """Send a request that has one answer, and return the answer's payload.

        kind: nlmsg_type of the request, which must be one that only reads.

        Raises NetlinkError with the kernel's errno, or EPROTO where no reply came;
        MalformedMessage.
        """
        for _ in range(_ATTEMPTS):
            answer = self._answer(self._send(kind, 0, payload))
            if answer is None:
                continue
            if answer.type == NLMSG_ERROR:
                raise failure(answer.payload)
            return bytes(answer.payload)
        raise NetlinkError(errno.EPROTO, "no reply from netlink")

    def change(self, kind: int, payload: bytes) -> None:
        """Send a request that changes something, once, and wait for its acknowledgement.

        Raises NetlinkError with the kernel's errno, or EPROTO where no acknowledgement came
        and so nobody knows whether the change was made; MalformedMessage.
        """
        answer = self._answer(self._send(kind, NLM_F_ACK, payload))
        if answer is None:
            raise NetlinkError(errno.EPROTO, "no acknowledgement from netlink")
        if answer.type != NLMSG_ERROR:
            raise MalformedMessage(f"nlmsg_type {answer.type} where an acknowledgement was due")
        if number := status(answer.payload):
            raise NetlinkError(number, os.strerror(number))

    def dump(self, kind: int, payload: bytes) -> Iterator[Run]:
        """Send a request for a dump and yield its messages in runs.

        A run's memory is reused for the next one. A dump is no snapshot: what
        changes meanwhile may be missing from it, or in it twice.

        Raises DumpInterrupted at the end of a dump that the kernel marked as
        inconsistent, and where messages were lost; NetlinkError; MalformedMessage.
        """
        finished = False
        try:
            sequence = self._send(kind, NLM_F_DUMP, payload)
            interrupted = False
            for datagram in self._datagrams():
                for run in runs(datagram):
                    if run.sequence != sequence:
                        continue
                    interrupted |= bool(run.flags & NLM_F_DUMP_INTR)
                    if run.type == NLMSG_DONE:
                        finished = True
                        _raise_for_end(run, interrupted=interrupted)
                        return
                    if run.type == NLMSG_ERROR:
                        raise failure(run.first_payload)
                    if run.type == NLMSG_OVERRUN:
                        raise DumpInterrupted(errno.ENOBUFS, "NLMSG_OVERRUN")
                    yield run
            raise DumpInterrupted(errno.ENOBUFS, "the dump ends without NLMSG_DONE")
        except OSError as error:
            if not _buffer_was_full(error):
                raise
            raise DumpInterrupted(errno.ENOBUFS, "the receive buffer was full") from error
        finally:
            # One dump at a time and socket (EBUSY): let an abandoned one run to its end.
            if not finished:
                self.discard()

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        sequence = self.next_sequence()
        length = NLMSGHDR.size + len(payload)
        self.send(NLMSGHDR.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + payload)
        return sequence

    def _answer(self, sequence: int) -> Message | None:
        """The first message in answer to a request; None if it is lost.

        It was taken by a signal handler that used this socket in between, or the
        receive buffer had no room for it.
        """
        try:
            for datagram in self._datagrams():
                for message in messages(datagram):
                    if message.sequence == sequence:
                        return message
        except OSError as error:
            if not _buffer_was_full(error):
                raise
        return None

    def _datagrams(self) -> Iterator[memoryview]:
        """What the kernel has to say, datagram by datagram, in one reused buffer."""
        buffer = memoryview(bytearray(_BUFFER))
        while True:
            try:
                # With MSG_TRUNC, the return value is the datagram's true length.
                size = self._socket.recv_into(buffer, 0, MSG_TRUNC)
            except BlockingIOError:
                return
            if size > _BUFFER:
                raise MalformedMessage(f"a datagram of {size} octets does not fit")
            yield buffer[:size]

    def discard(self) -> None:
        """Read what is left, which is what makes a dump go on, and forget it."""
        while not self.closed:
            try:
                self.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                # Reported once for each loss.
                if not _buffer_was_full(error):
                    raise


def _buffer_was_full(error: OSError) -> bool:
    """Whether recv() told of lost messages, which the kernel's replies do not."""
    return error.errno == errno.ENOBUFS and not isinstance(error, NetlinkError)


def _raise_for_end(done: Run, *, interrupted: bool) -> None:
    payload = done.first_payload
    if status(payload):
        raise failure(payload)
    if interrupted:
        raise DumpInterrupted(errno.EINTR, "NLM_F_DUMP_INTR")
