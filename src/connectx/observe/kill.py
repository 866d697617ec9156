"""Close the sockets that match a filter, whoever owns them.

This takes two steps: `select` lists the sockets and changes nothing, and `kill` closes what
was listed. The kernel is given the 4-tuple and the cookie of each, so a socket that has taken
the place of another meanwhile is not closed. See `connectx.linux.sock_destroy`.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PROTOCOLS, Endpoint
from connectx.linux.netlink import NetlinkError, NetlinkSocket
from connectx.linux.sock_destroy import destroy, require_destroy
from connectx.linux.socket_dump import filter_between, records
from connectx.linux.uapi import NETLINK_SOCK_DIAG, STATE_NAMES
from connectx.observe.namespace import visiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from connectx.addresses import PortRange
    from connectx.linux.sock_diag import SocketRecord

#: The states that a filter may name, by protocol. For TCP these are the states in which a
#: lookup finds a socket, which it does not if the socket is only bound, or not even that.
STATES: Final[Mapping[str, tuple[str, ...]]] = {
    "tcp": (
        "TIME-WAIT",
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "CLOSE-WAIT",
        "LAST-ACK",
        "CLOSING",
        "LISTEN",
    ),
    "udp": ("ESTAB", "UNCONN"),
}

TIME_WAIT: Final = ("TIME-WAIT",)


class Wanted(NamedTuple):
    """The sockets to close.

    Attributes:
        protocol: "tcp" or "udp".
        states: Some of `STATES`. Listeners are closed only if "LISTEN" is among them.
        source: The sockets' own address; "" for any.
        destination: Their peer; host "" and port 0 for any.
        source_ports: The range that their own ports lie in; None for any.
        limit: How many to close at most; None for all.
    """

    protocol: str = "tcp"
    states: tuple[str, ...] = TIME_WAIT
    source: str = ""
    destination: Endpoint = Endpoint("", 0)
    source_ports: PortRange | None = None
    limit: int | None = None


class Outcome(NamedTuple):
    """The outcome of closing sockets.

    Attributes:
        closed: The number of sockets that were closed.
        gone: The number of sockets that no longer existed.
        refused: By errno, the number of sockets that the kernel did not close. ENOENT stands
            for sockets that exist but that its lookup does not find, such as a UDP socket
            behind another one on the same 4-tuple.
    """

    closed: int
    gone: int
    refused: Mapping[int, int]


def select(wanted: Wanted, *, netns: str | None = None) -> list[SocketRecord]:
    """List the sockets that `kill` would close now.

    Args:
        wanted: The filter.
        netns: Another network namespace, by name, path or pid, which takes CAP_SYS_ADMIN.

    Raises:
        ValueError: A protocol or state is unknown, a host is no IP address, or more than
            TIME_WAIT is to be closed and neither a source nor a destination is given.
        OSError: The namespace cannot be entered, or its sockets cannot be listed.
    """
    _check(wanted)
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        # A dump may list a socket twice while others come and go.
        once = {record.cookie: record for record in _list(netlink, wanted)}
    return list(once.values())[: wanted.limit]


def require(protocol: str, *, netns: str | None = None) -> None:
    """Check that `kill` is allowed and possible, without closing anything.

    Raises:
        PermissionError: EPERM, without CAP_NET_ADMIN.
        OSError: EOPNOTSUPP, if the kernel lacks INET_DIAG_DESTROY; otherwise as `select`.
    """
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        require_destroy(netlink, PROTOCOLS[protocol].table)


def kill(wanted: Wanted, selected: Sequence[SocketRecord], *, netns: str | None = None) -> Outcome:
    """Close the sockets that `select` has listed.

    A socket whose state has changed is closed too. One that has entered TIME_WAIT counts as
    gone, because a TIME_WAIT has a cookie of its own.

    Raises:
        OSError: As `require` does, before anything is closed.
    """
    protocol = PROTOCOLS[wanted.protocol].table
    closed = gone = 0
    refused: Counter[int] = Counter()
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        require_destroy(netlink, protocol)
        left = list(selected)
        while left:
            missed: list[SocketRecord] = []
            for record in left:
                try:
                    destroy(netlink, protocol, record)
                except NetlinkError as error:
                    if error.errno == errno.ENOENT:
                        missed.append(record)
                    else:
                        refused[error.errno or errno.EPROTO] += 1
                else:
                    closed += 1
            if not missed:
                break
            # Several sockets may be on one 4-tuple (UDP, or listeners with SO_REUSEPORT). The
            # kernel's lookup finds the same one of them until that is gone.
            there = {record.cookie for record in _list(netlink, wanted)}
            hidden = [record for record in missed if record.cookie in there]
            gone += len(missed) - len(hidden)
            if len(missed) == len(left):
                refused[errno.ENOENT] += len(hidden)
                break
            left = hidden
    return Outcome(closed, gone, +refused)


def _check(wanted: Wanted) -> None:
    if wanted.protocol not in STATES:
        raise ValueError(f"a protocol is 'tcp' or 'udp', not {wanted.protocol!r}")
    known = STATES[wanted.protocol]
    name = wanted.protocol.upper()
    if not wanted.states or not set(wanted.states) <= set(known):
        strange = ", ".join(sorted(set(wanted.states) - set(known))) or "none"
        raise ValueError(f"a state of {name} is one of {', '.join(known)}, not {strange}")
    if set(wanted.states) != set(TIME_WAIT) and not (wanted.source or any(wanted.destination)):
        raise ValueError(
            "sockets that are not in TIME-WAIT are closed by source or destination only: name one"
        )


def _list(netlink: NetlinkSocket, wanted: Wanted) -> list[SocketRecord]:
    states = sum(1 << number for number, name in STATE_NAMES.items() if name in wanted.states)
    asked = filter_between(
        PROTOCOLS[wanted.protocol].table,
        states,
        wanted.source,
        wanted.destination,
        wanted.source_ports and (wanted.source_ports,),
    )
    return records(netlink, asked)
