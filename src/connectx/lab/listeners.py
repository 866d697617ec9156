"""A service whose port is in the ephemeral range, and an outgoing connection that takes it.

Services start late: after an upgrade, or when they are restarted. By then an outgoing
connection may have their port. net.ipv4.ip_local_reserved_ports keeps the kernel from choosing
such ports.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx.lab.calls import Attempt, Bind, CallSequence, Then, complete
from connectx.lab.mixing import OK, Opening, attained, outcome
from connectx.lab.private_networks import leave_one_port
from connectx.lab.procedures import Connectx, Source
from connectx.lab.transports import FIRST, Transport
from connectx.sandbox.servers import Servers

if TYPE_CHECKING:
    from connectx.lab.private_networks import PrivateNetworks
    from connectx.lab.progress import Watch

#: The service's port; even, see leave_one_port().
PORT: Final = 40000

OUTGOING: Final[tuple[Opening, ...]] = (
    CallSequence(),
    CallSequence(bind=Bind.ANY_PORT),
    CallSequence(reuseaddr=True, bind=Bind.PORT),
    Connectx(Source.ADDRESS),
    Connectx(Source.PORT),
)


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        takes: Whether the outgoing connection has the service's port.
        service: OK, or the errno and the call that kept the service from starting.
    """

    takes: bool
    service: str


class Case(NamedTuple):
    """An outgoing connection, and then a service.

    Attributes:
        transport: The protocol and family.
        outgoing: The calls of the connection.
        service: The calls of the service.
        anywhere: Whether the service binds to the wildcard address.
        reserved: Whether its port is in ip_local_reserved_ports.
        expected: What is known to come of it.
        observed: What came of it; None where this kernel lacks something that the connection
            needs.
    """

    transport: Transport
    outgoing: str
    service: str
    anywhere: bool
    reserved: bool
    expected: Outcome
    observed: Outcome | None

    @property
    def agrees(self) -> bool | None:
        """Whether the kernel does as expected; None where it could not be tried."""
        return None if self.observed is None else self.observed == self.expected


def service(transport: Transport, *, anywhere: bool) -> CallSequence:
    """Return what a service does to start: TCP servers set SO_REUSEADDR, UDP servers rarely do."""
    return CallSequence(
        reuseaddr=transport.stream,
        bind=Bind.PORT,
        then=Then.LISTEN if transport.stream else Then.RECEIVE,
        anywhere=anywhere,
    )


def expected(transport: Transport, outgoing: Opening, *, reserved: bool) -> Outcome:
    """Return what is known to come of a case, whatever address the service binds to."""
    asked = (
        outgoing.bind is Bind.PORT
        if isinstance(outgoing, CallSequence)
        else outgoing.source is Source.PORT
    )
    # An explicit bind gets its port, reserved or not.
    takes = asked or not reserved
    # inet_csk_bind_conflict(): bind() shares the port of a socket that does not listen if both
    # have SO_REUSEADDR.
    beside = transport.stream and attained(transport, outgoing).reuseaddr
    starts = not takes or beside
    return Outcome(takes, OK if starts else f"{errno.errorcode[errno.EADDRINUSE]} at bind")


def run(transport: Transport, networks: PrivateNetworks, watch: Watch) -> list[Case]:
    """Try all cases, each in a private network of its own."""
    cases: list[Case] = []
    total = len(OUTGOING) * 4
    for outgoing in OUTGOING:
        lacking = outgoing.missing(transport)
        for anywhere in (False, True):
            starting = service(transport, anywhere=anywhere)
            for reserved in (False, True):
                watch(transport.title, "services", len(cases), total)
                observed = None
                if not lacking:
                    observed = _observe(transport, outgoing, starting, networks, reserved=reserved)
                cases.append(
                    Case(
                        transport,
                        outgoing.calls,
                        starting.calls,
                        anywhere,
                        reserved,
                        expected(transport, outgoing, reserved=reserved),
                        observed,
                    )
                )
    watch(transport.title, "services", total, total)
    return cases


def _observe(
    transport: Transport,
    outgoing: Opening,
    starting: CallSequence,
    networks: PrivateNetworks,
    *,
    reserved: bool,
) -> Outcome:
    with networks.fresh() as network, Servers() as servers, contextlib.ExitStack() as closing:
        # One of two ports is reserved, the service's or the other, so that chance plays no part.
        ports = leave_one_port(network, PORT)
        if reserved:
            network.reserved_ports(str(PORT))
        attempt = Attempt(transport, ports, PORT, FIRST)
        transport.serve(servers)
        sock = closing.enter_context(complete(outgoing.open(attempt)))
        return Outcome(sock.getsockname()[1] == PORT, outcome(starting, attempt, closing))


def as_json(case: Case) -> dict[str, Any]:
    """Return a case in JSON's types."""
    return {
        **case.transport.as_json(),
        "outgoing": case.outgoing,
        "service": case.service,
        "service_address": "wildcard" if case.anywhere else "source",
        "reserved": case.reserved,
        "expected": case.expected._asdict(),
        "observed": None if case.observed is None else case.observed._asdict(),
        "agrees": case.agrees,
    }
