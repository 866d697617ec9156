"""What this kernel can do, found out by trying: yes, no, or could not tell.

A kernel's version says little: distributions backport features (IP_LOCAL_PORT_RANGE is in
6.1.32) or leave them out. So each feature is tried when it is first asked about, on a scratch
socket that is neither bound nor connected.

"Yes" and "no" are remembered. A trial that was inconclusive is repeated the next time: no
descriptor was left, say, or a sysctl of this namespace switches the feature off.
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
    """Something that some kernels have and others lack.

    Attributes:
        name: What it is called.
        since: The first mainline version that has it, for people to read.
        gives: What connectx can do with it.
        trial: Uses it once, and returns whether the kernel has it. Raises OSError if the trial
            was inconclusive.
    """

    name: str
    since: tuple[int, int]
    gives: str
    trial: Callable[[], bool]


def probe(feature: Feature) -> Probe:
    """Return whether the running kernel has a feature. Tries it unless the answer is known."""
    try:
        return Probe.YES if _known(feature) else Probe.NO
    except OSError:
        return Probe.UNKNOWN


@functools.cache
def _known(feature: Feature) -> bool:
    # functools.cache remembers no exception, so an inconclusive trial is repeated.
    return feature.trial()


def kernel_version() -> tuple[int, int]:
    """Return the running kernel's version, major and minor; (0, 0) if uname(2) does not say."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# Trials.


def _works(use: Callable[[], object], *refusals: int) -> bool:
    """Return False if a use fails with an errno that means "no"; any other error is raised."""
    try:
        use()
    except OSError as error:
        if error.errno not in refusals:
            raise
        return False
    return True


def _has_option(use: Callable[[socket.socket], object]) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as scratch:
        return _works(lambda: use(scratch), errno.ENOPROTOOPT)


def _has_netns_cookie() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as scratch:
        return get_so_netns_cookie(scratch) is not None


def _has_protocol(kind: int, protocol: int) -> bool:
    # EINVAL: kernels before 5.6 take no protocol above 255, as MPTCP's is. ENOPROTOOPT is
    # inconclusive: net.mptcp.enabled is 0 in this namespace.
    return _works(
        lambda: socket.socket(socket.AF_INET, kind, protocol).close(),
        errno.EPROTONOSUPPORT,
        errno.EINVAL,
    )


def _has_range_for_mptcp() -> bool:
    if not _has_protocol(socket.SOCK_STREAM, IPPROTO_MPTCP):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as scratch:
        return _works(
            lambda: set_ip_local_port_range(scratch, 0, 0), errno.ENOPROTOOPT, errno.EOPNOTSUPP
        )


def _has_dump(protocol: int) -> bool:
    # A dump, not a lookup: without tcp_diag or udp_diag the kernel answers both with ENOENT, but
    # for a lookup that could also mean "no such socket". The dump asks for sockets in no state,
    # so that it is empty.
    # Imported here, since what most programs probe needs no netlink.
    from connectx.linux.netlink import NetlinkSocket  # noqa: PLC0415
    from connectx.linux.socket_dump import Filter, encode_dump  # noqa: PLC0415

    request = encode_dump(AF_INET, AF_INET, Filter(protocol, states=0))

    def dump() -> None:
        with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
            for _ in netlink.dump(SOCK_DIAG_BY_FAMILY, request):
                pass

    return _works(dump, errno.ENOENT, errno.EPROTONOSUPPORT)


def _searches_in_steps_of_one() -> bool:
    # Only the time that a search takes shows it. A version may decide here, because the answer
    # tunes speed and nothing else.
    return kernel_version() >= (6, 8)


# Features.

IP_BIND_ADDRESS_NO_PORT: Final = Feature(
    "IP_BIND_ADDRESS_NO_PORT",
    (4, 2),
    "TCP sockets bound to an address share ports between destinations",
    lambda: _has_option(lambda sock: set_ip_bind_address_no_port(sock, on=True)),
)
IP_LOCAL_PORT_RANGE: Final = Feature(
    "IP_LOCAL_PORT_RANGE",
    (6, 3),
    "a socket chooses its source ports, even a single one, without blocking them for others",
    lambda: _has_option(lambda sock: set_ip_local_port_range(sock, 0, 0)),
)
IP_LOCAL_PORT_RANGE_MPTCP: Final = Feature(
    "IP_LOCAL_PORT_RANGE for MPTCP",
    (6, 8),
    "an MPTCP socket chooses its source ports without blocking them for others",
    _has_range_for_mptcp,
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
    lambda: _has_option(get_so_cookie),
)
SO_NETNS_COOKIE: Final = Feature(
    "SO_NETNS_COOKIE",
    (5, 14),
    "a socket tells which network namespace it is in",
    _has_netns_cookie,
)
SOCK_DIAG_TCP: Final = Feature(
    "SOCK_DIAG for TCP",
    (3, 3),
    "listing the source ports in use toward a destination",
    lambda: _has_dump(IPPROTO_TCP),
)
SOCK_DIAG_UDP: Final = Feature(
    "SOCK_DIAG for UDP",
    (3, 3),
    "finding out whether a UDP 4-tuple is in use, which sharing UDP ports safely requires",
    lambda: _has_dump(IPPROTO_UDP),
)
MPTCP: Final = Feature(
    "MPTCP",
    (5, 6),
    "connections over several paths",
    lambda: _has_protocol(socket.SOCK_STREAM, IPPROTO_MPTCP),
)
UDP_LITE: Final = Feature(
    "UDP-Lite",
    (2, 6),
    "datagrams with partial checksums; gone from Linux 7.1",
    lambda: _has_protocol(socket.SOCK_DGRAM, IPPROTO_UDPLITE),
)
TCP_FASTOPEN_CONNECT: Final = Feature(
    "TCP_FASTOPEN_CONNECT",
    (4, 11),
    "the first data is sent with the SYN",
    # EOPNOTSUPP is inconclusive: bit 0 of net.ipv4.tcp_fastopen is off in this namespace.
    lambda: _has_option(lambda sock: set_tcp_fastopen_connect(sock, on=True)),
)

#: All features, the most important first.
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
