"""Fill the table of tracked connections, by ctnetlink: with entries that no new one may evict."""

import errno
import select
import socket
import struct
from pathlib import Path
from typing import Final

from tests import limits

_LIMIT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")

_NETLINK_NETFILTER: Final = 12
_NEW: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_REQUEST_CREATE: Final = 0x01 | 0x400
_NESTED: Final = 0x8000
#: linux/netfilter/nf_conntrack_common.h: seen a reply, assured, confirmed.
_STATUS: Final = 1 << 1 | 1 << 2 | 1 << 3
_BATCH: Final = 400


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _tuple(kind: int, source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
    addresses = _attribute(1, source) + _attribute(2, destination)
    protocol = _attribute(1, bytes([socket.IPPROTO_UDP]))
    for number, port in enumerate(ports, 2):
        protocol += _attribute(number, struct.pack(">H", port))
    return _attribute(
        kind | _NESTED, _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, protocol)
    )


def _entry(number: int) -> bytes:
    here = bytes([10, 0, number >> 16 & 255, 1])
    there, port = bytes([10, 1, 0, 1]), number & 0xFFFF
    body = struct.pack(">BBH", socket.AF_INET, 0, 0)
    body += _tuple(1, here, there, (port, 53)) + _tuple(2, there, here, (53, port))
    body += _attribute(3, struct.pack(">I", _STATUS)) + _attribute(7, struct.pack(">I", 600))
    return struct.pack("=IHHII", 16 + len(body), _NEW, _REQUEST_CREATE, 0, 0) + body


def limit() -> int:
    """As many as the machine allows in each of its namespaces, which one cannot change."""
    return int(_LIMIT.read_text())


def fill() -> None:
    """Have the calling thread's namespace track as many connections as it may.

    Raises:
        OSError: The kernel refuses an entry before the table is full.
    """
    most = limit()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as channel:
        for start in range(0, most + _BATCH, _BATCH):
            channel.send(b"".join(map(_entry, range(start, start + _BATCH))))
            # The kernel answers while send() runs, and only where it refuses.
            if not select.select([channel], [], [], 0)[0]:
                continue
            refused = -struct.unpack_from("=i", limits.receive(channel, 8192), 16)[0]
            if refused != errno.ENOMEM or int(_COUNT.read_text()) < most:
                raise OSError(refused, "ctnetlink")
            return
