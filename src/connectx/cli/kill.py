"""``connectx kill``: list sockets in TIME-WAIT, or others by their addresses, and close them."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from connectx.addresses import Endpoint, needs_scope, text
from connectx.cli.arguments import add_addresses, add_netns, port_range, whole_number
from connectx.cli.command import FAILED, OK, UsageError, errors_reported
from connectx.cli.output import error_text, plural
from connectx.cli.page import Page
from connectx.cli.schemas import add_json, of_endpoint, print_json

if TYPE_CHECKING:
    import argparse

    from connectx.linux.sock_diag import SocketRecord
    from connectx.observe.kill import Outcome, Wanted

NAME: Final = "kill"
HELP: Final = "Close sockets in TIME-WAIT, or others by address; without --yes, only list them."
EXAMPLE: Final = "connectx kill --destination 198.51.100.9:443 --yes"

_TIME_WAIT_WARNING: Final = """\
TIME-WAIT keeps late segments of an old connection out of a new one on the same addresses and
ports, and answers a peer that missed the last acknowledgement (RFC 9293, RFC 1337). Without
it, such a segment can reset the new connection or corrupt its data."""

_OPEN_SOCKET_WARNINGS: Final = {
    "tcp": """\
Closing a connection resets it: undelivered data is lost, its owner gets ECONNABORTED, and its
peer gets a reset.""",
    "udp": """\
Closing a UDP socket disconnects it, and its owner gets ECONNABORTED. A port chosen by bind()
stays taken until the owner closes the socket.""",
}

_LISTENER_WARNING: Final = (
    "Closing a listener drops the connections in its queue, and nothing listens on its port."
)

#: Other names of states, in the kernel, in RFC 9293 and in netstat(8), without their hyphens.
_OTHER_NAMES: Final = {
    "ESTABLISHED": "ESTAB",
    "SYNRECEIVED": "SYNRECV",
    "NEWSYNRECV": "SYNRECV",
    "UNCONNECTED": "UNCONN",
}

#: The greatest width of the text, in columns.
_WIDEST: Final = 100

#: How many lines of the list are printed: there may be thousands.
_SHOWN: Final = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    from connectx.observe.kill import STATES  # noqa: PLC0415 - other commands need none of it

    states = tuple(dict.fromkeys(state for some in STATES.values() for state in some))
    parser.add_argument(
        "--yes", action="store_true", help="close the sockets instead of listing them"
    )
    parser.add_argument(
        "--state",
        action="append",
        type=_state_named,
        choices=states,
        metavar="STATE",
        help="close only what is in this state, however it is spelled; may be given several times "
        f"(default: TIME-WAIT). One of {', '.join(states)}; every state but TIME-WAIT needs "
        "--source or --destination",
    )
    parser.add_argument(
        "--protocol",
        choices=["tcp", "udp"],
        default="tcp",
        help="close only sockets of this protocol (default: tcp)",
    )
    add_addresses(parser, "close")
    parser.add_argument(
        "--source-port-range",
        type=port_range,
        metavar="LOW-HIGH",
        help="close only what has a source port in this range",
    )
    parser.add_argument("--limit", type=whole_number(), metavar="N", help="close at most N sockets")
    add_netns(parser)
    add_json(parser, "kill", "print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """List the sockets, and close them with --yes."""
    from connectx.observe.kill import kill, require, select  # noqa: PLC0415 - --help needs none

    outcome = None
    lacking = ""
    with errors_reported():
        wanted = _wanted(arguments)
        selected = select(wanted, netns=arguments.netns)
        try:
            require(wanted.protocol, netns=arguments.netns)
        except OSError as error:
            # Listing needs no privilege. The list says which one closing would need.
            if arguments.yes or error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            lacking = error_text(error)
        if selected:
            # On standard error, so that it is seen with --json too, and before anything closes.
            page = Page(_WIDEST, stream=sys.stderr)
            for warning in _warnings(wanted):
                page.paragraph(warning)
                page.line()
        if arguments.yes:
            outcome = kill(wanted, selected, netns=arguments.netns)
    if arguments.json:
        print_json("kill", _as_json(wanted, selected, outcome, lacking))
    else:
        _show(wanted, selected, outcome, lacking)
    return FAILED if outcome and outcome.refused else OK


def _state_named(text: str) -> str:
    """Return the name of a state as ss(8) prints it: also for TIME_WAIT, established, FIN-WAIT1."""
    from connectx.observe.kill import STATES  # noqa: PLC0415 - as above

    word = _plain(text).removeprefix("TCP")
    word = _OTHER_NAMES.get(word, word)
    return next((each for some in STATES.values() for each in some if _plain(each) == word), text)


def _plain(state: str) -> str:
    return state.upper().replace("-", "").replace("_", "").replace(" ", "")


def _wanted(arguments: argparse.Namespace) -> Wanted:
    from connectx.observe.kill import TIME_WAIT, Wanted  # noqa: PLC0415 - as above

    if arguments.protocol == "udp" and not arguments.state:
        raise UsageError("UDP has no TIME-WAIT; choose --state ESTAB or --state UNCONN")
    return Wanted(
        arguments.protocol,
        tuple(dict.fromkeys(arguments.state or TIME_WAIT)),
        arguments.source or "",
        arguments.destination,
        arguments.source_port_range,
        arguments.limit,
    )


def _as_json(
    wanted: Wanted, selected: list[SocketRecord], outcome: Outcome | None, lacking: str
) -> dict[str, object]:
    from connectx.observe.kill import Outcome  # noqa: PLC0415 - as above

    done = outcome or Outcome(closed=0, gone=0, refused={})
    return {
        "protocol": wanted.protocol,
        "states": list(wanted.states),
        "dry_run": outcome is None,
        "lacking": lacking,
        "selected": len(selected),
        "closed": done.closed,
        "gone": done.gone,
        "refused": {
            errno.errorcode.get(number, str(number)): times
            for number, times in done.refused.items()
        },
        "sockets": [
            {
                "state": _state(record),
                "source": of_endpoint(_source(record)),
                "destination": of_endpoint(_destination(record)),
            }
            for record in selected
        ],
    }


def _show(
    wanted: Wanted, selected: list[SocketRecord], outcome: Outcome | None, lacking: str
) -> None:
    page = Page(_WIDEST)
    if not selected:
        states = " or ".join(wanted.states)
        page.paragraph(f"No {wanted.protocol.upper()} socket in {states} matches.")
        return
    groups = Counter(
        (_state(record), _source(record).host, str(_destination(record))) for record in selected
    )
    for (state, source, destination), number in groups.most_common(_SHOWN):
        page.line(f"{number:>7,}  {state:<10}  {source} to {destination}")
    if len(groups) > _SHOWN:
        page.line(f"         {plural(len(groups) - _SHOWN, 'more row')}")
    page.line()
    if outcome is None:
        page.paragraph(f"Nothing was closed. --yes would close {plural(len(selected), 'socket')}.")
        if lacking:
            page.paragraph(f"This process cannot close them: {lacking}.")
        return
    page.paragraph(f"{plural(outcome.closed, 'socket')} closed, {outcome.gone:,} already gone.")
    for number, times in sorted(outcome.refused.items()):
        if number == errno.ENOENT:
            why = "the kernel finds another socket on the same 4-tuple"
        elif number == errno.EOPNOTSUPP:
            # Linux 5.10 refuses a TIME_WAIT so; 6.1 closes it (tcp_abort).
            why = "this kernel cannot close sockets in that state"
        else:
            why = os.strerror(number)
        page.paragraph(f"{times:,} not closed: {why}.")


def _warnings(wanted: Wanted) -> list[str]:
    """Return what closing such sockets breaks."""
    states = set(wanted.states)
    texts = []
    if "TIME-WAIT" in states:
        texts.append(_TIME_WAIT_WARNING)
    if states - {"TIME-WAIT", "LISTEN"}:
        texts.append(_OPEN_SOCKET_WARNINGS[wanted.protocol])
    if "LISTEN" in states:
        texts.append(_LISTENER_WARNING)
    return texts


def _state(record: SocketRecord) -> str:
    from connectx.linux.uapi import STATE_NAMES  # noqa: PLC0415 - as above

    return STATE_NAMES.get(record.state, str(record.state))


def _source(record: SocketRecord) -> Endpoint:
    return _end(record, record.source, record.source_port)


def _destination(record: SocketRecord) -> Endpoint:
    return _end(record, record.destination, record.destination_port)


def _end(record: SocketRecord, address: bytes, port: int) -> Endpoint:
    scope = record.interface if needs_scope(address) else 0
    return Endpoint(text(address), port, 0, scope)
