"""The devices of a network namespace, at any moment.

A dump of them (RTM_GETLINK) takes about 20 µs. The kernel announces a device that comes, goes or
changes, so the list is read again only after an announcement. To see that there is none takes
0.3 µs (SO_MEMINFO).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from connectx.linux.netlink import DumpInterrupted
from connectx.linux.structs import IFINFOMSG, NLMSGHDR, RTATTR
from connectx.linux.uapi import (
    IFLA_EXT_MASK,
    LOOPBACK_IFINDEX,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETLINK,
    SO_MEMINFO,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from connectx.linux.netlink import NetlinkSocket

#: As `Devices` gives them.
LOOPBACK: Final = LOOPBACK_IFINDEX.to_bytes(4, sys.byteorder)

#: The request for the list, without statistics, which are most of a reply.
EVERY_DEVICE: Final = (
    IFINFOMSG.pack(0, 0, 0, 0, 0)
    + RTATTR.pack(RTATTR.size + 4, IFLA_EXT_MASK)
    + RTEXT_FILTER_SKIP_STATS.to_bytes(4, sys.byteorder)
)

#: How often an inconsistent dump is repeated.
_DUMP_ATTEMPTS: Final = 8


class Devices:
    """Knows the devices of one network namespace; for one thread at a time.

    Args:
        netlink: A NETLINK_ROUTE socket, for requests.
        announcements: Another one in the same namespace, in the group RTMGRP_LINK.
    """

    __slots__ = ("_announcements", "_known", "_netlink")

    def __init__(self, netlink: NetlinkSocket, announcements: NetlinkSocket) -> None:
        self._netlink = netlink
        self._announcements = announcements
        self._known: tuple[bytes, ...] | None = None

    def but_loopback(self) -> tuple[bytes, ...]:
        """Return the octets of their indices, without the loopback device, which all have.

        Raises:
            NetlinkError: With the kernel's errno.
            MalformedMessage: The replies cannot be read.
        """
        known = self._known
        if known is None or self._announcements.getsockopt(SOL_SOCKET, SO_MEMINFO):
            # First, so that what comes during the dump is seen the next time.
            self._announcements.discard()
            known = self._known = self._read()
        return known

    def _read(self) -> tuple[bytes, ...]:
        for _ in range(_DUMP_ATTEMPTS - 1):
            try:
                return self._dump()
            except DumpInterrupted:
                continue
        return self._dump()

    def _dump(self) -> tuple[bytes, ...]:
        indices = []
        for run in self._netlink.dump(RTM_GETLINK, EVERY_DEVICE):
            for start in range(NLMSGHDR.size, len(run.messages), run.stride):
                index = bytes(run.messages[start + 4 : start + 8])
                if index != LOOPBACK:
                    indices.append(index)
        return tuple(indices)
