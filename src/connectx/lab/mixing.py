"""Which techniques can share a source port with which.

One socket has an address and port toward the first destination. Another technique wants the
same address and port toward the second. There is one port to choose, so that every technique
means the same one.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from connectx.lab.calls import (
    Attempt,
    Bind,
    CallSequence,
    Then,
    Window,
    complete,
    has_option,
)
from connectx.lab.opening import REFUSALS
from connectx.lab.private_networks import leave_one_port
from connectx.lab.procedures import Connectx, Source
from connectx.lab.transports import FIRST, SECOND, Transport
from connectx.sandbox.servers import Servers

if TYPE_CHECKING:
    import socket

    from connectx.lab.calls import Opener
    from connectx.lab.private_networks import PrivateNetworks
    from connectx.lab.progress import Watch

PORT: Final = 40000

#: How the port is held, or wanted.
Opening: TypeAlias = CallSequence | Connectx

OK: Final = "ok"


class Cell(NamedTuple):
    """A pair of techniques.

    Attributes:
        transport: The protocol and family.
        first: The calls of the socket that has the port.
        second: The calls of the socket that wants it too.
        expected: OK, or the errno and the call that gave it.
        observed: The same; "" where this kernel lacks something that one of them needs.
    """

    transport: Transport
    first: str
    second: str
    expected: str
    observed: str

    @property
    def agrees(self) -> bool | None:
        """Whether the kernel does as expected; None where it could not be tried."""
        return self.observed == self.expected if self.observed else None


_CONNECT_PICKS: Final = (
    CallSequence(),
    CallSequence(no_port=True, bind=Bind.ANY_PORT),
    CallSequence(window=Window.ONE_PORT),
    CallSequence(window=Window.ONE_PORT, no_port=True, bind=Bind.ANY_PORT),
)

OPENINGS: Final[tuple[Opening, ...]] = (
    *_CONNECT_PICKS,
    *(sequence._replace(reuseaddr=True) for sequence in _CONNECT_PICKS),
    CallSequence(reuseaddr=True, bind=Bind.PORT),
    CallSequence(reuseaddr=True, bind=Bind.ANY_PORT),
    CallSequence(reuseport=True, bind=Bind.PORT),
    CallSequence(bind=Bind.PORT),
    CallSequence(bind=Bind.ANY_PORT),
    CallSequence(window=Window.ONE_PORT, bind=Bind.ANY_PORT),
    Connectx(Source.ADDRESS),
    Connectx(Source.PORT),
)


def openings(transport: Transport) -> tuple[Opening, ...]:
    """Return the rows, which are the columns as well; the last one is a service."""
    service = CallSequence(
        reuseaddr=True, bind=Bind.PORT, then=Then.LISTEN if transport.stream else Then.RECEIVE
    )
    return (*OPENINGS, service)


class Attained(NamedTuple):
    """What a socket that has a port means to others.

    Attributes:
        reuseaddr: Whether SO_REUSEADDR is on.
        reuseport: Whether SO_REUSEPORT is on.
        connect_picks: Whether sockets that leave the choice to connect() share the port.
        listens: Whether it is a listener.
        receives: Whether it is a datagram service.
    """

    reuseaddr: bool
    reuseport: bool
    connect_picks: bool
    listens: bool
    receives: bool = False


def attained(transport: Transport, opening: Opening) -> Attained:
    """Return what a technique's socket means to others, if the port was free."""
    if isinstance(opening, CallSequence):
        return Attained(
            opening.reuseaddr,
            opening.reuseport,
            opening.connect_picks,
            opening.then is Then.LISTEN,
            opening.then is Then.RECEIVE,
        )
    late = opening.source is Source.ADDRESS and has_option(transport, "IP_BIND_ADDRESS_NO_PORT")
    return Attained(
        reuseaddr=True,
        reuseport=False,
        connect_picks=late or has_option(transport, "IP_LOCAL_PORT_RANGE"),
        listens=False,
    )


def expected(transport: Transport, first: Opening, second: Opening) -> str:
    """Return what is known to come of a pair, on a kernel that has what it needs."""
    holder = attained(transport, first)
    if isinstance(second, Connectx):
        return _expected_of_connectx(transport, holder, second)
    both = (holder.reuseaddr and second.reuseaddr) or (holder.reuseport and second.reuseport)
    at_connect = f"{_refusal(transport)} at connect"
    at_bind = f"{errno.errorcode[errno.EADDRINUSE]} at bind"
    if not transport.stream:
        # udp_lib_get_port() does not know the destination: the options decide.
        if both:
            return OK
        return at_connect if second.connect_picks else at_bind
    if second.connect_picks:
        # __inet_hash_connect() skips every port that bind() chose for a socket.
        return OK if holder.connect_picks else at_connect
    # inet_csk_bind_conflict(); for port 0 it never shares (ip_autobind_reuse is off).
    return OK if both and second.bind is Bind.PORT and not holder.listens else at_bind


def _expected_of_connectx(transport: Transport, holder: Attained, second: Connectx) -> str:
    # An explicit bind with SO_REUSEADDR, which the UDP lock uses as well, shares it.
    by_bind = holder.reuseaddr and not holder.listens
    asked = second.source is Source.PORT
    if not transport.stream:
        # A service keeps its port, unless that was asked for.
        shared = by_bind and (asked or not holder.receives)
    elif has_option(transport, "IP_LOCAL_PORT_RANGE"):
        shared = holder.connect_picks or (asked and by_bind)
    else:
        # Without windows, the kernel chooses first and explicit binds follow, or they are all.
        late = not asked and has_option(transport, "IP_BIND_ADDRESS_NO_PORT")
        shared = by_bind or (late and holder.connect_picks)
    if shared:
        return OK
    number = errno.errorcode[errno.EADDRINUSE] if asked else _refusal(transport)
    return f"{number} at connectx"


def _refusal(transport: Transport) -> str:
    return errno.errorcode[errno.EADDRNOTAVAIL if transport.stream else errno.EAGAIN]


def run(transport: Transport, networks: PrivateNetworks, watch: Watch) -> list[Cell]:
    """Try all pairs, each in a private network of its own."""
    everything = openings(transport)
    missing = {opening: opening.missing(transport) for opening in everything}
    cells: list[Cell] = []
    for first in everything:
        watch(transport.title, "pairs", len(cells), len(everything) ** 2)
        for second in everything:
            observed = ""
            if not missing[first] and not missing[second]:
                observed = _observe(transport, first, second, networks)
            cells.append(
                Cell(
                    transport,
                    first.calls,
                    second.calls,
                    expected(transport, first, second),
                    observed,
                )
            )
    watch(transport.title, "pairs", len(cells), len(cells))
    return cells


def _observe(
    transport: Transport, first: Opening, second: Opening, networks: PrivateNetworks
) -> str:
    # A fresh network for each pair: traces of an earlier socket on the port would be taken for
    # the technique's, and connectx reads the port range only once a second.
    with networks.fresh() as network, Servers() as servers, contextlib.ExitStack() as closing:
        ports = leave_one_port(network, PORT)
        transport.serve(servers)
        holder = complete(first.open(Attempt(transport, ports, PORT, FIRST)))
        closing.enter_context(holder)
        return outcome(second, Attempt(transport, ports, PORT, SECOND), closing)


def outcome(opener: Opener, attempt: Attempt, closing: contextlib.ExitStack) -> str:
    """Open a socket.

    Args:
        opener: How to open it.
        attempt: What it is opened for.
        closing: Closes the socket.

    Returns:
        OK, or the errno and the call that gave it.
    """
    steps = opener.open(attempt)
    call = ""
    while True:
        try:
            call = next(steps)
        except StopIteration as end:
            sock: socket.socket = end.value
            closing.enter_context(sock)
            return OK
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return f"{errno.errorcode[error.errno]} at {call}"


def as_json(cell: Cell) -> dict[str, Any]:
    """Return a pair in JSON's types."""
    return {
        **cell.transport.as_json(),
        "first": cell.first,
        "second": cell.second,
        "expected": cell.expected,
        "observed": cell.observed or None,
        "agrees": cell.agrees,
    }
