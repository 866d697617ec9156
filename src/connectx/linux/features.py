"""What this kernel can do, found by trying: yes, no, or could not tell.

A version says little: distributions carry features back (IP_LOCAL_PORT_RANGE is
in 6.1.32) or leave them out. So a feature is tried the first time somebody asks,
on a scratch socket that is neither bound nor connected. Yes and no are
remembered; what could not be told now, for want of a descriptor or because a
sysctl of this namespace switches the feature off, is tried again.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import re
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.linux.sockopts import (
    get_so_cookie,
    get_so_netns_cookie,
    set_ip_bind_address_no_port,
    set_ip_local_port_range,
    set_tcp_fastopen_connect,
)
from connectx.linux.uapi import (
    AF_INET,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NETLINK_SOCK_DIAG,
    SOCK_DIAG_BY_FAMILY,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Probe(enum.Enum):
    """Whether the kernel has a feature."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "could not tell"


class Feature(NamedTuple):
    """Something that kernels have or lack.

    name: what it is called.
    since: the least mainline version with it.
    gives: what it is good for here.
    trial: use it once and say whether it is there; OSError where that shows nothing.
    """

    name: str
    since: tuple[int, int]
    gives: str
    trial: Callable[[], bool]


def probe(feature: Feature) -> Probe:
    """Whether the running kernel has a feature; tries it unless that is known already."""
    try:
        return Probe.YES if _known(feature) else Probe.NO
    except OSError:
        return Probe.UNKNOWN


@functools.cache
def _known(feature: Feature) -> bool:
    # functools.cache remembers no exception: an inconclusive trial is repeated.
    return feature.trial()


def kernel_version() -> tuple[int, int]:
    """The running kernel's version, major and minor; (0, 0) where uname does not say."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _lacking(error: OSError, *numbers: int) -> bool:
    """False if the error means that the kernel lacks the feature; raises any other."""
    if error.errno not in numbers:
        raise error
    return False


def _takes(option: Callable[[socket.socket], object]) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as scratch:
        try:
            option(scratch)
        except OSError as error:
            return _lacking(error, errno.ENOPROTOOPT)
    return True


def _try_netns_cookie() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as scratch:
        return get_so_netns_cookie(scratch) is not None


def _try_mptcp() -> bool:
    # ENOPROTOOPT is net.mptcp.enabled=0 in this namespace, and says nothing of the
    # kernel; kernels before 5.6 take no protocol above 255 (EINVAL).
    return _makes(socket.SOCK_STREAM, IPPROTO_MPTCP)


def _makes(kind: int, protocol: int) -> bool:
    try:
        socket.socket(socket.AF_INET, kind, protocol).close()
    except OSError as error:
        return _lacking(error, errno.EPROTONOSUPPORT, errno.EINVAL)
    return True


def _try_range_for_mptcp() -> bool:
    if not _try_mptcp():
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as scratch:
        try:
            set_ip_local_port_range(scratch, 0, 0)
        except OSError as error:
            return _lacking(error, errno.ENOPROTOOPT, errno.EOPNOTSUPP)
    return True


def _dumps(protocol: int) -> bool:
    # A dump, not a lookup: a kernel without tcp_diag or udp_diag refuses both with
    # ENOENT, but only to a lookup could that also mean "no such socket". With no
    # state asked for, the answer is empty.
    # Imported here, since what most programs probe needs no netlink.
    from connectx.linux.netlink import NetlinkSocket  # noqa: PLC0415
    from connectx.linux.socket_dump import Filter, encode_dump  # noqa: PLC0415

    request = encode_dump(AF_INET, AF_INET, Filter(protocol, states=0))
    try:
        with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
            for _ in netlink.dump(SOCK_DIAG_BY_FAMILY, request):
                pass
    except OSError as error:
        return _lacking(error, errno.ENOENT, errno.EPROTONOSUPPORT)
    return True


def _searches_in_steps_of_one() -> bool:
    # Nothing shows it but the time a search takes. It tunes speed only, which is
    # why a version may decide.
    return kernel_version() >= (6, 8)


IP_BIND_ADDRESS_NO_PORT: Final = Feature(
    "IP_BIND_ADDRESS_NO_PORT",
    (4, 2),
    "TCP sockets bound to an address share ports between destinations",
    lambda: _takes(lambda sock: set_ip_bind_address_no_port(sock, on=True)),
)
IP_LOCAL_PORT_RANGE: Final = Feature(
    "IP_LOCAL_PORT_RANGE",
    (6, 3),
    "a socket chooses its source ports, down to a single one, without blocking them for others",
    lambda: _takes(lambda sock: set_ip_local_port_range(sock, 0, 0)),
)
IP_LOCAL_PORT_RANGE_MPTCP: Final = Feature(
    "IP_LOCAL_PORT_RANGE for MPTCP",
    (6, 8),
    "the same for MPTCP sockets",
    _try_range_for_mptcp,
)
STEP_OF_ONE: Final = Feature(
    "search in steps of one",
    (6, 8),
    "with IP_LOCAL_PORT_RANGE set, connect() finds a free port in a full range quickly",
    _searches_in_steps_of_one,
)
SO_COOKIE: Final = Feature(
    "SO_COOKIE",
    (4, 12),
    "a socket recognises itself in what SOCK_DIAG finds",
    lambda: _takes(get_so_cookie),
)
SO_NETNS_COOKIE: Final = Feature(
    "SO_NETNS_COOKIE",
    (5, 14),
    "a socket names its network namespace",
    _try_netns_cookie,
)
SOCK_DIAG_TCP: Final = Feature(
    "SOCK_DIAG for TCP",
    (3, 3),
    "which source ports are in use toward a destination",
    lambda: _dumps(IPPROTO_TCP),
)
SOCK_DIAG_UDP: Final = Feature(
    "SOCK_DIAG for UDP",
    (3, 3),
    "whether a UDP 4-tuple is taken, without which UDP ports cannot be shared safely",
    lambda: _dumps(IPPROTO_UDP),
)
MPTCP: Final = Feature("MPTCP", (5, 6), "connections over several paths", _try_mptcp)
UDP_LITE: Final = Feature(
    "UDP-Lite",
    (2, 6),
    "datagrams with partial checksums; gone from Linux 7.1",
    lambda: _makes(socket.SOCK_DGRAM, IPPROTO_UDPLITE),
)
TCP_FASTOPEN_CONNECT: Final = Feature(
    "TCP_FASTOPEN_CONNECT",
    (4, 11),
    "the first data goes out with the SYN",
    # EOPNOTSUPP is bit 0 of net.ipv4.tcp_fastopen, which a namespace may set.
    lambda: _takes(lambda sock: set_tcp_fastopen_connect(sock, on=True)),
)

#: All of them, the ones that most depends on first.
FEATURES: Final = (
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IP_LOCAL_PORT_RANGE_MPTCP,
    STEP_OF_ONE,
    SO_COOKIE,
    SO_NETNS_COOKIE,
    SOCK_DIAG_TCP,
    SOCK_DIAG_UDP,
    MPTCP,
    UDP_LITE,
    TCP_FASTOPEN_CONNECT,
)
