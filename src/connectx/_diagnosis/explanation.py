"""`ConnectxError.explain()`: why an attempt failed, from the sockets that there are now.

The only module here that knows how a connection is made; what it passes on is addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx._connect.strategies import Verdict
from connectx._diagnosis import census
from connectx._diagnosis.causes import CONNECTED, PORT_HELD, TUPLE_IN_USE, advise
from connectx.addresses import Endpoint, FourTuple
from connectx.linux.netlink import MalformedMessage

if TYPE_CHECKING:
    from connectx._connect.plan import Plan


def explain(verdict: Verdict, plan: Plan) -> str:
    """Return why an attempt failed and what helps, in a few plain lines."""
    if verdict is Verdict.TUPLE_IN_USE:
        return advise([TUPLE_IN_USE])
    if verdict is Verdict.PORT_HELD:
        return advise([PORT_HELD])
    request = plan.request
    try:
        # First of all: this is what fails (EXDEV) in another network namespace.
        netlink = plan.terms.namespace.diag
        source = plan.terms.host or request.source_host(
            request.origin.wire_source or plan.terms.route(request, b"").source
        )
        connection = FourTuple(
            request.origin.protocol,
            Endpoint(source, request.origin.source.port, *request.source_suffix),
            request.destination,
        )
        counted = census.take(netlink, connection, plan.terms.ports)
    except (OSError, MalformedMessage) as error:
        return f"The sockets could not be counted ({error}).\n{advise([CONNECTED])}"
    reasons = advise(cause for cause, _ in counted.by_cause(stream=request.origin.stream))
    return f"{counted.describe(connection)}\n{reasons}"
