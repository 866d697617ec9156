"""Replies of the kernel, captured or made up, and a netlink socket that answers with them."""

import _socket
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.structs import NETLINK_STATUS, NLMSGHDR

#: The sequence number of every captured reply: the same in either byte order, since
#: TupleLookup sends its own in network order.
SEQUENCE = 0x01010101


def message(kind: int, payload: bytes = b"", flags: int = 0, sequence: int = SEQUENCE) -> bytes:
    header = NLMSGHDR.pack(NLMSGHDR.size + len(payload), kind, flags, sequence, 0)
    return header + payload + bytes(-len(payload) % 4)


def done(number: int = 0, flags: int = 0) -> bytes:
    return message(uapi.NLMSG_DONE, NETLINK_STATUS.pack(-number), flags)


def refusal(number: int) -> bytes:
    return message(uapi.NLMSG_ERROR, NETLINK_STATUS.pack(-number))


RECORD = message(uapi.SOCK_DIAG_BY_FAMILY, bytes(72))


def datagrams(name: str) -> list[bytes]:
    """A capture, datagram by datagram."""
    text = Path(__file__).with_name(f"{name}.hex").read_text()
    return [bytes.fromhex(line) for line in text.split()]


def names() -> list[str]:
    """All captures."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.hex"))


@contextmanager
def replaying(replies: Iterable[bytes]) -> Iterator[NetlinkSocket]:
    """A netlink socket on which these datagrams are the kernel's replies, whatever is asked.

    In the kernel's place is the other end of a socket pair, which like netlink
    keeps datagrams apart and reports their true length with MSG_TRUNC.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for reply in replies:
            theirs.send(reply)
        netlink = NetlinkSocket.__new__(NetlinkSocket)
        netlink._socket = _socket.socket(fileno=ours.detach())
        netlink._socket.settimeout(0)
        netlink.send, netlink.recv = netlink._socket.send, netlink._socket.recv
        netlink.next_sequence = lambda: SEQUENCE
        with netlink:
            yield netlink
