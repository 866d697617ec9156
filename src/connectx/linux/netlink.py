"""Netlink: framing, sequence numbers, errors, interrupted and truncated dumps.

`messages`, `runs` and `status` parse octets and do no I/O; `NetlinkSocket` does.

The kernel answers a netlink request before send() returns, and continues a dump within recv().
So nothing here ever waits: the socket is non-blocking, and a missing reply is an error.
"""

from __future__ import annotations

import errno
import os

# The C class, not socket.socket, which gevent replaces: its socket may switch to another
# greenlet between a request and its reply.
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

#: The most that a dump puts into one datagram, however large the buffer is (netlink_recvmsg).
_BUFFER: Final = 32768

#: More octets than the answer to any request here has, dumps aside.
_ANSWER: Final = 8192

#: How often a request is sent if its reply gets lost. Requests only read, so repeating one is
#: harmless.
_ATTEMPTS: Final = 3

#: MAX_ERRNO in include/linux/err.h: the kernel encodes no larger error.
_MAX_ERRNO: Final = 4095


class MalformedMessage(ValueError):  # noqa: N818
    """Octets that are not netlink messages, or not of the kind asked for."""


class NetlinkError(OSError):
    """The kernel refused a netlink request; ``errno`` is the kernel's.

    It is a class of its own because ``OSError(EAGAIN, …)`` makes a BlockingIOError, which
    callers of connect() take for "in progress".
    """


class DumpInterrupted(NetlinkError):  # noqa: N818
    """A dump is inconsistent (EINTR) or lost messages (ENOBUFS). Repeat it."""


class Message(NamedTuple):
    """A netlink message. Its payload stays in the buffer that it was received in."""

    type: int
    flags: int
    sequence: int
    payload: memoryview


class Run(NamedTuple):
    """Consecutive messages with the same length, type, flags and sequence number.

    Attributes:
        stride: The octets from one message to the next.
        messages: The messages with their headers.
    """

    type: int
    flags: int
    sequence: int
    stride: int
    messages: memoryview

    @property
    def first_payload(self) -> memoryview:
        """The payload of the first message, without padding."""
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
    """Yield the messages in a datagram.

    Raises:
        MalformedMessage: The lengths do not add up.
    """
    view = memoryview(buffer)
    offset = 0
    while offset < len(view):
        length, kind, flags, sequence = _header(view, offset)
        yield Message(kind, flags, sequence, view[offset + NLMSGHDR.size : offset + length])
        offset += length + 3 & ~3  # NLMSG_ALIGN


def runs(buffer: bytes | bytearray | memoryview) -> Iterator[Run]:
    """Yield the messages in a datagram, those that are alike together.

    Nearly all messages of a dump have the same length. Decoding them as columns of one array
    costs less than the kernel's part of the dump.

    Raises:
        MalformedMessage: The lengths do not add up.
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
    """Count the messages at the start that share the first one's header."""
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
    """Return the errno in the payload of NLMSG_ERROR or NLMSG_DONE; 0 for success."""
    if len(payload) < NETLINK_STATUS.size:
        raise MalformedMessage(f"a status of {len(payload)} octets")
    (value,) = NETLINK_STATUS.unpack_from(payload)
    if not -_MAX_ERRNO <= value <= 0:
        raise MalformedMessage(f"a status of {value}")
    return -int(value)


def failure(payload: memoryview) -> NetlinkError:
    """Return the exception for an NLMSG_ERROR in answer to a request without NLM_F_ACK."""
    number = status(payload)
    if number == 0:
        raise MalformedMessage("an acknowledgement where an answer was due")
    return NetlinkError(number, os.strerror(number))


class NetlinkSocket:
    """A netlink socket that exchanges messages only with the kernel.

    Use it in one thread at a time, and not after a fork: two users of one socket would take
    each other's replies. It belongs to the network namespace of the thread that opened it,
    even if that thread moves to another one.

    Args:
        protocol: NETLINK_ROUTE or NETLINK_SOCK_DIAG.
        groups: A bit for each multicast group to listen to, as in RTMGRP_LINK. Such a socket is
            for its announcements only.

    Attributes:
        send: The socket's own method, for callers for whom a microsecond matters.
        recv: The same, for receiving.
        getsockopt: The same, for options.
        next_sequence: Returns a sequence number that no queued reply carries.

    Raises:
        OSError: EPROTONOSUPPORT if the kernel lacks the protocol, EMFILE and others as
            socket(2) fails.
    """

    __slots__ = ("_socket", "getsockopt", "next_sequence", "recv", "send")

    send: Callable[[bytes], int]
    recv: Callable[[int], bytes]
    getsockopt: Callable[[int, int], int]
    next_sequence: Callable[[], int]

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._socket = _Socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        self._socket.settimeout(0)
        if groups:
            self._socket.bind((0, groups))
        # Once it is connected to the kernel (port id 0), other processes cannot send to it
        # (ECONNREFUSED, netlink_getsockbyportid). So no reply's sender needs checking.
        self._socket.connect((0, 0))
        # Errors then come without a copy of the request, and are recognised by their length.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.send = self._socket.send
        self.recv = self._socket.recv
        self.getsockopt = self._socket.getsockopt
        # All of it is C, so it is atomic and fast. It starts again after 2**32 - 1.
        self.next_sequence = chain.from_iterable(repeat(range(1, 1 << 32))).__next__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Owners drop a socket whose thread has ended or was interrupted. That is no leak,
        # though _socket's ResourceWarning would call it one.
        if hasattr(self, "_socket"):
            self._socket.close()

    def close(self) -> None:
        """Close the socket; later calls raise OSError (EBADF)."""
        self._socket.close()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._socket.fileno() < 0

    @property
    def netns_cookie(self) -> int | None:
        """SO_NETNS_COOKIE of its network namespace; None before Linux 5.14."""
        return get_so_netns_cookie(self._socket)

    def request(self, kind: int, payload: bytes) -> bytes:
        """Send a request that has one answer, and return the payload of the answer.

        Args:
            kind: The nlmsg_type. The request must only read, since it may be repeated.
            payload: What follows the header.

        Raises:
            NetlinkError: With the kernel's errno, or EPROTO if no reply came.
            MalformedMessage: The reply is not a netlink message.
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
        """Send a request that changes something, once, and read its acknowledgement.

        Args:
            kind: The nlmsg_type.
            payload: What follows the header.

        Raises:
            NetlinkError: With the kernel's errno, or EPROTO if no acknowledgement came: then
                it is unknown whether the change was made.
            MalformedMessage: The reply is not an acknowledgement.
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

        The memory of a run is reused for the next. A dump is not a snapshot: what changes in
        the meantime may be missing, or occur twice.

        Args:
            kind: The nlmsg_type.
            payload: What follows the header.

        Raises:
            DumpInterrupted: Messages were lost, or the kernel marked the dump as inconsistent
                (raised at its end).
            NetlinkError: With the kernel's errno.
            MalformedMessage: The reply is not a netlink message.
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
            # A socket has one dump at a time (EBUSY), so an abandoned one must run to its end.
            if not finished:
                self.discard()

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        sequence = self.next_sequence()
        length = NLMSGHDR.size + len(payload)
        self.send(NLMSGHDR.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + payload)
        return sequence

    def _answer(self, sequence: int) -> Message | None:
        """Return the first message in answer to a request; None if it was lost.

        Either a signal handler that used this socket in between has taken it, or the receive
        buffer had no room for it.
        """
        try:
            while True:
                datagram = self.recv(_ANSWER)
                if len(datagram) == _ANSWER:
                    raise MalformedMessage(f"an answer of {_ANSWER} octets or more")
                for message in messages(datagram):
                    if message.sequence == sequence:
                        return message
        except BlockingIOError:
            return None
        except OSError as error:
            if not _buffer_was_full(error):
                raise
        return None

    def _datagrams(self) -> Iterator[memoryview]:
        """Yield the queued datagrams, all in the same buffer."""
        buffer = memoryview(bytearray(_BUFFER))
        while True:
            try:
                # MSG_TRUNC returns the true length of a datagram, even if the buffer is shorter.
                size = self._socket.recv_into(buffer, 0, MSG_TRUNC)
            except BlockingIOError:
                return
            if size > _BUFFER:
                raise MalformedMessage(f"a datagram of {size} octets does not fit")
            yield buffer[:size]

    def discard(self) -> None:
        """Read and discard what is queued; reading also makes a dump continue to its end."""
        while not self.closed:
            try:
                self.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS is reported once for each loss.
                if not _buffer_was_full(error):
                    raise


def _buffer_was_full(error: OSError) -> bool:
    """Return whether an error is recv()'s report of lost messages, not an errno in a reply."""
    return error.errno == errno.ENOBUFS and not isinstance(error, NetlinkError)


def _raise_for_end(done: Run, *, interrupted: bool) -> None:
    payload = done.first_payload
    if status(payload):
        raise failure(payload)
    if interrupted:
        raise DumpInterrupted(errno.EINTR, "NLM_F_DUMP_INTR")
