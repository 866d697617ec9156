"""Close sockets that match a filter, whoever has them.

In two steps, of which the first changes nothing: `select` lists them, `kill` closes what
was listed. Each is named to the kernel by its 4-tuple and its cookie, so that what took
its place meanwhile is not hit. See connectx.linux.sock_destroy.
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

#: The states that a filter may name, by protocol. Of TCP, those in which a lookup finds a
#: socket: not one that is only bound, or not even that. UDP has no others.
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
    """Which sockets to close.

    protocol: "tcp" or "udp". states: as in `STATES`; a listener is closed only where
    "LISTEN" is among them.
    source, destination: the socket's own address, and its peer's; "" and 0 mean any.
    source_ports: those of its own end; None for any.
    limit: how many at most; None for all.
    """

    protocol: str = "tcp"
    states: tuple[str, ...] = TIME_WAIT
    source: str = ""
    destination: Endpoint = Endpoint("", 0)
    source_ports: PortRange | None = None
    limit: int | None = None


class Outcome(NamedTuple):
    """What came of closing sockets.

    closed: how many are. gone: how many were no longer there. refused: by errno, how many
    the kernel would not close; ENOENT for those that are there but that its lookup does not
    lead to, such as a UDP socket behind another one on the same 4-tuple.
    """

    closed: int
    gone: int
    refused: Mapping[int, int]


def select(wanted: Wanted, *, netns: str | None = None) -> list[SocketRecord]:
    """The sockets that `kill` would close, as they are now.

    netns: another network namespace, by name, path or pid; CAP_SYS_ADMIN in it.

    Raises ValueError for a protocol or state that there is not, for what is no address,
    and where more than TIME_WAIT is to be closed with neither a source nor a destination;
    OSError as `connectx.observe.namespace.visiting` does; NetlinkError.
    """
    _check(wanted)
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        # A dump may give a socket twice while others come and go.
        once = {record.cookie: record for record in _list(netlink, wanted)}
    return list(once.values())[: wanted.limit]


def require(protocol: str, *, netns: str | None = None) -> None:
    """Find out whether `kill` would be allowed and possible, without closing anything.

    Raises PermissionError (EPERM) without CAP_NET_ADMIN, OSError (EOPNOTSUPP) for a kernel
    without INET_DIAG_DESTROY; otherwise as `select`.
    """
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        require_destroy(netlink, PROTOCOLS[protocol].table)


def kill(wanted: Wanted, selected: Sequence[SocketRecord], *, netns: str | None = None) -> Outcome:
    """Close sockets that `select` has listed.

    One that is in another state than before is closed all the same, except for one that
    has come to TIME_WAIT, which counts as gone: a TIME_WAIT has a cookie of its own.

    Raises as `require` does, before anything is closed.
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
            # The kernel looks up a 4-tuple, and of several sockets on one (UDP, or listeners
            # with SO_REUSEPORT) finds the same one until that is gone.
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
        raise ValueError("what is not in TIME-WAIT is closed by source or destination only")


def _list(netlink: NetlinkSocket, wanted: Wanted) -> list[SocketRecord]:
    states = sum(1 << number for number, name in STATE_NAMES.items() if name in wanted.states)
    family, asked = filter_between(
        PROTOCOLS[wanted.protocol].table,
        states,
        wanted.source,
        wanted.destination,
        wanted.source_ports and (wanted.source_ports,),
    )
    return records(netlink, family, asked)
