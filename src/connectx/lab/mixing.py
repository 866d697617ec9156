"""Which techniques can share a source port with which.

One socket has an address and port toward the first destination; another technique
wants the same address and port toward the second. There is one port to choose, so
that every technique means the same one.
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

#: What is held, or wanted.
Opening: TypeAlias = CallSequence | Connectx

OK: Final = "ok"


class Cell(NamedTuple):
    """A pair of techniques.

    first, second: the calls of who has the port, and of who wants it too.
    expected, observed: OK, or the errno and the call that gave it; observed is ""
    where this kernel lacks something that one of them needs.
    """

    transport: Transport
    first: str
    second: str
    expected: str
    observed: str

    @property
    def agrees(self) -> bool | None:
        """Whether it is as expected; None where there is nothing to compare."""
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
    """The rows, which are the columns as well; the last is a service."""
    service = CallSequence(
        reuseaddr=True, bind=Bind.PORT, then=Then.LISTEN if transport.stream else Then.RECEIVE
    )
    return (*OPENINGS, service)


class Attained(NamedTuple):
    """What a socket that has a port means to others.

    reuseaddr, reuseport: options that are on.
    connect_picks: whether the port is shared by whoever leaves the choice to connect().
    listens: whether it is a listener.
    """

    reuseaddr: bool
    reuseport: bool
    connect_picks: bool
    listens: bool


def attained(transport: Transport, opening: Opening) -> Attained:
    """What a technique's socket means to others, if the port was free."""
    if isinstance(opening, CallSequence):
        return Attained(
            opening.reuseaddr,
            opening.reuseport,
            opening.connect_picks,
            opening.then is Then.LISTEN,
        )
    late = opening.source is Source.ADDRESS and has_option(transport, "IP_BIND_ADDRESS_NO_PORT")
    return Attained(
        reuseaddr=True,
        reuseport=False,
        connect_picks=late or has_option(transport, "IP_LOCAL_PORT_RANGE"),
        listens=False,
    )


def expected(transport: Transport, first: Opening, second: Opening) -> str:
    """What we know to come of a pair, on a kernel that has what it needs."""
    holder = attained(transport, first)
    if isinstance(second, Connectx):
        return _expected_of_connectx(transport, holder, second)
    both = (holder.reuseaddr and second.reuseaddr) or (holder.reuseport and second.reuseport)
    at_connect = f"{_refusal(transport)} at connect"
    at_bind = f"{errno.errorcode[errno.EADDRINUSE]} at bind"
    if not transport.stream:
        # udp_lib_get_port() knows of no destination: it is the options that decide.
        if both:
            return OK
        return at_connect if second.connect_picks else at_bind
    if second.connect_picks:
        # __inet_hash_connect() skips every port that bind() has chosen for a socket.
        return OK if holder.connect_picks else at_connect
    # inet_csk_bind_conflict(); for port 0 it never shares (ip_autobind_reuse is off).
    return OK if both and second.bind is Bind.PORT and not holder.listens else at_bind


def _expected_of_connectx(transport: Transport, holder: Attained, second: Connectx) -> str:
    # By an explicit bind with SO_REUSEADDR, which is also what the UDP lock does.
    by_bind = holder.reuseaddr and not holder.listens
    asked = second.source is Source.PORT
    if not transport.stream:
        shared = by_bind
    elif has_option(transport, "IP_LOCAL_PORT_RANGE"):
        shared = holder.connect_picks or (asked and by_bind)
    else:
        # Without windows: the kernel's own choice and then binds, or binds alone.
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
    # A fresh network for each pair: a former socket's traces on the port would be
    # taken for the technique's, and connectx reads the port range once a second.
    with networks.fresh() as network, Servers() as servers, contextlib.ExitStack() as closing:
        ports = leave_one_port(network, PORT)
        transport.serve(servers)
        holder = complete(first.open(Attempt(transport, ports, PORT, FIRST)))
        closing.enter_context(holder)
        return outcome(second, Attempt(transport, ports, PORT, SECOND), closing)


def outcome(opener: Opener, attempt: Attempt, closing: contextlib.ExitStack) -> str:
    """Open a socket and say what came of it: OK, or the errno and the call that gave it.

    closing: gets the socket.
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
    """The same in JSON's types."""
    return {
        "protocol": cell.transport.protocol,
        "family": cell.transport.family,
        "first": cell.first,
        "second": cell.second,
        "expected": cell.expected,
        "observed": cell.observed or None,
        "agrees": cell.agrees,
    }
