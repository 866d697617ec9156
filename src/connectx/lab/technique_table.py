"""The articles' tables: every technique, and what is known to come of it.

What is expected is what kernels do, not what has been written about them: tests/kernel/ shows
each fact, and a note says where an article has it otherwise.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PortRange
from connectx.lab.calls import Bind, CallSequence, Window
from connectx.lab.procedures import Connectx, Lock, RetriedBind, ShiftingWindows, Source

if TYPE_CHECKING:
    from connectx.lab.calls import Opener
    from connectx.lab.transports import Transport

#: The source ports of a row. Their number is even, because before Linux 6.8 a window of an
#: odd number of ports loses the last one.
PORTS: Final = PortRange(40000, 40063)

#: The one sysctl besides the port range that a technique needs.
AUTOBIND_REUSE: Final = "net.ipv4.ip_autobind_reuse"


class Findings(NamedTuple):
    """What comes of a technique.

    Attributes:
        errno: The error that ends it when the ports are used up; "" for none.
        shares: Whether a source address and port serves both destinations.
        overshadows: Whether two sockets can be on one 4-tuple.
        opened: Connections to each of the two destinations, at most PORTS.size.
    """

    errno: str
    shares: bool
    overshadows: bool
    opened: tuple[int, int]


class Technique(NamedTuple):
    """A row of the table.

    Attributes:
        name: What it is called.
        opener: How it opens a socket.
        expected: What is known to come of it.
        note: What else there is to say, such as that an article has it otherwise.
        sysctl: What has to be set to 1 for it; "" for nothing.
    """

    name: str
    opener: Opener
    expected: Findings
    note: str = ""
    sysctl: str = ""


_SIZE: Final = PORTS.size
_NOTAVAIL: Final = errno.errorcode[errno.EADDRNOTAVAIL]
_INUSE: Final = errno.errorcode[errno.EADDRINUSE]
_AGAIN: Final = errno.errorcode[errno.EAGAIN]

#: Every port for every destination, and each 4-tuple once.
_SHARED: Final = Findings(_NOTAVAIL, shares=True, overshadows=False, opened=(_SIZE, _SIZE))
#: Each port for one destination only.
_EXCLUSIVE: Final = Findings(_INUSE, shares=False, overshadows=False, opened=(_SIZE, 0))
#: Nothing is ever refused.
_UNCHECKED: Final = Findings("", shares=True, overshadows=True, opened=(_SIZE, _SIZE))

_BOUND: Final = CallSequence(bind=Bind.ANY_PORT)
_WINDOWED: Final = CallSequence(no_port=True, bind=Bind.ANY_PORT)

_STREAM_TECHNIQUES: Final = (
    Technique("plain connect", CallSequence(), _SHARED),
    Technique("bind before connect", _BOUND, _EXCLUSIVE),
    Technique(
        "bind before connect, SO_REUSEADDR",
        _BOUND._replace(reuseaddr=True),
        _EXCLUSIVE,
        "The 2014 article says that this shares ports. It does so on no known kernel: bind() to "
        f"port 0 never takes a port that another socket has, unless {AUTOBIND_REUSE} is set.",
    ),
    Technique("bind before connect, SO_REUSEPORT", _BOUND._replace(reuseport=True), _EXCLUSIVE),
    Technique(
        "bind before connect, SO_REUSEADDR, retries",
        RetriedBind(),
        _EXCLUSIVE,
        "The 2014 article's loop. It retries when connect() refuses, but bind() refuses first.",
    ),
    Technique(
        "bind before connect, SO_REUSEADDR, retries, ip_autobind_reuse",
        RetriedBind(),
        # inet_csk_find_open_port(): with SO_REUSEADDR it begins with the odd offsets of the lower
        # half of the range, and each time it finds a port there that may be shared.
        _SHARED._replace(opened=(_SIZE, _SIZE // 4)),
        f"What the 2014 article describes needs {AUTOBIND_REUSE}=1 (Linux 5.7). It then shares "
        "every other port of the range's lower half, a quarter of all.",
        sysctl=AUTOBIND_REUSE,
    ),
    Technique("IP_BIND_ADDRESS_NO_PORT", _WINDOWED, _SHARED),
    Technique(
        "explicit source port, SO_REUSEADDR",
        CallSequence(reuseaddr=True, bind=Bind.PORT),
        _SHARED,
    ),
    Technique("one-port window", _WINDOWED._replace(window=Window.ONE_PORT), _SHARED),
    Technique("full-range window", _WINDOWED._replace(window=Window.FULL_RANGE), _SHARED),
    Technique(
        "full-range window, no IP_BIND_ADDRESS_NO_PORT",
        _BOUND._replace(window=Window.FULL_RANGE),
        _EXCLUSIVE,
        "The 2024 article's code as printed: bind() chooses the port, so it is not shared.",
    ),
    Technique("shifting windows", ShiftingWindows(), _SHARED),
    *(Technique(f"connectx: {source.value}", Connectx(source), _SHARED) for source in Source),
)

_DATAGRAM_NOTE: Final = (
    "When the kernel chooses the port, it tells datagram sockets apart by source address and port "
    "alone."
)
_NO_ERRNO_NOTE: Final = (
    "No system call fails here: when the lookup finds another socket, the 2022 article's code "
    "reports EAGAIN."
)

_DATAGRAM_TECHNIQUES: Final = (
    Technique("plain connect", CallSequence(), _EXCLUSIVE._replace(errno=_AGAIN)),
    Technique("bind before connect", _BOUND, _EXCLUSIVE),
    Technique(
        "IP_BIND_ADDRESS_NO_PORT", _WINDOWED, _EXCLUSIVE._replace(errno=_AGAIN), _DATAGRAM_NOTE
    ),
    Technique(
        "full-range window",
        _WINDOWED._replace(window=Window.FULL_RANGE),
        _EXCLUSIVE._replace(errno=_AGAIN),
        _DATAGRAM_NOTE,
    ),
    Technique(
        "SO_REUSEADDR",
        CallSequence(reuseaddr=True),
        _UNCHECKED,
        "The 2022 article's table has EAGAIN. It never occurs: when all sockets have SO_REUSEADDR, "
        "the kernel checks nothing, so nothing runs out.",
    ),
    Technique("bind before connect, SO_REUSEADDR", _BOUND._replace(reuseaddr=True), _UNCHECKED),
    Technique("SO_REUSEPORT", CallSequence(reuseport=True), _UNCHECKED),
    Technique(
        "explicit source port, SO_REUSEADDR",
        CallSequence(reuseaddr=True, bind=Bind.PORT),
        _UNCHECKED,
    ),
    Technique(
        "lookup without lock",
        Lock(locks=False, looks=True),
        _UNCHECKED._replace(errno=_AGAIN),
        _NO_ERRNO_NOTE,
    ),
    Technique("lock without lookup", Lock(locks=True, looks=False), _UNCHECKED),
    Technique(
        "SO_REUSEADDR as a lock",
        Lock(locks=True, looks=True),
        _SHARED._replace(errno=_AGAIN),
        _NO_ERRNO_NOTE,
    ),
    *(
        Technique(
            f"connectx: {source.value}",
            Connectx(source),
            _SHARED._replace(errno=_INUSE if source is Source.PORT else _AGAIN),
        )
        for source in Source
    ),
)


def techniques(transport: Transport) -> tuple[Technique, ...]:
    """Return the rows for a transport, in the order of the table."""
    return _STREAM_TECHNIQUES if transport.stream else _DATAGRAM_TECHNIQUES
