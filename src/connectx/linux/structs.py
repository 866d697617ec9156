"""Layouts of the kernel's structures, each checked against its size.

Every layout has native byte order and no implicit padding (``=``): the padding of the ABI is
written out. Fields in network byte order (ports, addresses) stay octets.
"""

from __future__ import annotations

from struct import Struct
from typing import Final


def layout(fields: str, size: int) -> Struct:
    """Return a layout in native byte order; it must have the size that C's sizeof gives."""
    compiled = Struct("=" + fields)
    if compiled.size != size:
        msg = f"layout {fields!r} takes {compiled.size} bytes, but the kernel's takes {size}"
        raise AssertionError(msg)
    return compiled


#: linux/netlink.h ``nlmsghdr``: length, type, flags, sequence, port id.
NLMSGHDR: Final = layout("IHHII", 16)

#: linux/netlink.h: the beginning of NLMSG_ERROR and NLMSG_DONE, 0 or a negative errno.
NETLINK_STATUS: Final = layout("i", 4)

#: linux/netlink.h ``nlattr``, linux/rtnetlink.h ``rtattr``: length with header, type.
RTATTR: Final = layout("HH", 4)

#: linux/inet_diag.h ``inet_diag_sockid``: source port, destination port, source,
#: destination, interface, cookie (low word first, whatever the machine's byte order).
INET_DIAG_SOCKID: Final = layout("2s2s16s16sI8s", 48)

#: linux/inet_diag.h ``inet_diag_req_v2``: family, protocol, extensions, padding, states,
#: ``inet_diag_sockid``.
INET_DIAG_REQ_V2: Final = layout("BBBxI48s", 56)

#: linux/inet_diag.h ``inet_diag_req``: family, two lengths and extensions (all unused),
#: ``inet_diag_sockid``, states, tables (unused).
INET_DIAG_REQ: Final = layout("4x48sI4x", 60)

#: linux/inet_diag.h ``inet_diag_msg``: family, state, timer, retransmits,
#: ``inet_diag_sockid``, expires, receive queue, write queue, uid, inode.
INET_DIAG_MSG: Final = layout("BBBB48sIIIII", 72)

#: linux/inet_diag.h ``inet_diag_bc_op``: code, offset of the next op if yes, if no.
INET_DIAG_BC_OP: Final = layout("BBH", 4)

#: linux/inet_diag.h ``inet_diag_hostcond``: family, prefix length, port (-1: any);
#: the address follows.
INET_DIAG_HOSTCOND: Final = layout("BBxxi", 8)

#: linux/rtnetlink.h ``rtmsg``: family, destination prefix length, source prefix length,
#: tos, table, protocol, scope, type, flags.
RTMSG: Final = layout("BBBBBBBBI", 12)

#: linux/rtnetlink.h ``ifinfomsg``: family, type, index, flags, which flags to change.
IFINFOMSG: Final = layout("BxHiII", 16)

#: linux/if_addr.h ``ifaddrmsg``: family, prefix length, flags, scope, index.
IFADDRMSG: Final = layout("BBBBI", 8)

#: include/net/ip.h: the value of IP_LOCAL_PORT_RANGE is one u32, ``low | high << 16``.
LOCAL_PORT_RANGE: Final = layout("I", 4)

#: linux/tcp.h ``tcp_info``, up to the milliseconds since data was last sent, and received.
TCP_INFO_IDLE: Final = layout("44xI4xI", 56)
