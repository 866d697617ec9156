"""``connectx kill``: close sockets in TIME_WAIT, or others by their addresses."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections import Counter
from socket import inet_ntop
from typing import TYPE_CHECKING, Final

from connectx.addresses import Endpoint
from connectx.cli.arguments import (
    add_addresses,
    add_json,
    add_netns,
    port_range,
    whole_number,
)
from connectx.cli.command import FAILED, OK, WRONG_USAGE, CommandError, errors_reported
from connectx.cli.output import error_text, plural

if TYPE_CHECKING:
    import argparse

    from connectx.linux.sock_diag import SocketRecord
    from connectx.observe.kill import Outcome, Wanted

NAME: Final = "kill"
HELP: Final = "Close sockets in TIME-WAIT, or others by their addresses; without --yes, list them."
EXAMPLE: Final = "connectx kill --destination 198.51.100.9:443 --yes"

_OF_TIME_WAIT: Final = """\
TIME-WAIT keeps late segments of an old connection out of a new one on the same addresses and
ports, and answers a peer that has not heard the end (RFC 9293, RFC 1337). Without it, such a
segment can end the new connection or get into its data."""

_OF_OTHERS: Final = {
    "tcp": """\
Closing a connection resets it: what is not delivered is lost, its owner gets ECONNABORTED, and
its peer a reset.""",
    "udp": """\
A UDP socket's owner gets ECONNABORTED, and the socket is no longer connected. A port that
bind() gave it stays taken until its owner closes it.""",
}

_OF_LISTENERS: Final = (
    "Closing a listener ends what waits in its queue, and nobody listens there any more."
)

#: Lines of the list; there may be thousands.
_SHOWN: Final = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from connectx.observe.kill import STATES  # noqa: PLC0415 - of it, this alone

    states = tuple(dict.fromkeys(state for some in STATES.values() for state in some))
    parser.add_argument("--yes", action="store_true", help="close them; otherwise only list them")
    parser.add_argument(
        "--state",
        action="append",
        choices=states,
        metavar="STATE",
        help=f"close what is in this state; may be given several times (TIME-WAIT). "
        f"One of {', '.join(states)}; all but TIME-WAIT need --source or --destination",
    )
    parser.add_argument("--protocol", choices=["tcp", "udp"], default="tcp", help="(tcp)")
    add_addresses(parser, "close")
    parser.add_argument(
        "--source-port-range",
        type=port_range,
        metavar="LOW-HIGH",
        help="close only what has a source port in this range",
    )
    parser.add_argument("--limit", type=whole_number(), metavar="N", help="close N at most")
    add_netns(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """List the sockets, and close them if that is wanted."""
    from connectx.observe.kill import kill, require, select  # noqa: PLC0415 - --help needs none

    outcome = None
    lacking = ""
    with errors_reported():
        wanted = _wanted(arguments)
        selected = select(wanted, netns=arguments.netns)
        try:
            require(wanted.protocol, netns=arguments.netns)
        except OSError as error:
            # To list them needs no privilege; whoever does learns that closing them would.
            if arguments.yes or error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            lacking = error_text(error)
        if selected:
            # On standard error, and before anything is done: with --yes and --json as well.
            print("\n\n".join(_warnings(wanted)), end="\n\n", file=sys.stderr)
        if arguments.yes:
            outcome = kill(wanted, selected, netns=arguments.netns)
    if arguments.json:
        print(json.dumps(_as_json(wanted, selected, outcome, lacking), indent=2))
    else:
        _show(wanted, selected, outcome, lacking)
    return FAILED if outcome and outcome.refused else OK


def _wanted(arguments: argparse.Namespace) -> Wanted:
    from connectx.observe.kill import TIME_WAIT, Wanted  # noqa: PLC0415 - as above

    if arguments.protocol == "udp" and not arguments.state:
        raise CommandError("UDP has no TIME-WAIT: say which --state, ESTAB or UNCONN", WRONG_USAGE)
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
    return {
        "protocol": wanted.protocol,
        "states": list(wanted.states),
        "dry_run": outcome is None,
        "lacking": lacking,
        "selected": len(selected),
        "closed": outcome.closed if outcome else 0,
        "gone": outcome.gone if outcome else 0,
        "refused": {
            errno.errorcode.get(number, str(number)): times
            for number, times in (outcome.refused if outcome else {}).items()
        },
        "sockets": [
            {
                "state": _state(record),
                "source": str(_source(record)),
                "destination": str(_destination(record)),
            }
            for record in selected
        ],
    }


def _show(
    wanted: Wanted, selected: list[SocketRecord], outcome: Outcome | None, lacking: str
) -> None:
    # Plain lines, not rich's tables: this works without the tools extra.
    if not selected:
        print(f"No {wanted.protocol.upper()} socket in {' or '.join(wanted.states)} matches.")
        return
    groups = Counter(
        (_state(record), _source(record).host, str(_destination(record))) for record in selected
    )
    for (state, source, destination), number in groups.most_common(_SHOWN):
        print(f"{number:>7,}  {state:<10}  {source} to {destination}")
    if len(groups) > _SHOWN:
        print(f"         and to {len(groups) - _SHOWN:,} more destinations")
    if outcome is None:
        print(f"\nNothing was closed. With --yes, {plural(len(selected), 'socket')} would be.")
        if lacking:
            print(f"Not by this process, though. {lacking}.")
        return
    print(f"\n{plural(outcome.closed, 'socket')} closed, {outcome.gone:,} gone meanwhile.")
    for number, times in sorted(outcome.refused.items()):
        if number == errno.ENOENT:
            print(f"{times:,} not closed: the kernel finds another socket in their place.")
        elif number == errno.EOPNOTSUPP:
            # Linux 5.10 says so of a TIME_WAIT, 6.1 closes it (tcp_abort).
            print(f"{times:,} not closed: this kernel closes no sockets in such a state.")
        else:
            print(f"{times:,} not closed: {os.strerror(number)}.")


def _warnings(wanted: Wanted) -> list[str]:
    """What closing such sockets violates."""
    states = set(wanted.states)
    texts = []
    if "TIME-WAIT" in states:
        texts.append(_OF_TIME_WAIT)
    if states - {"TIME-WAIT", "LISTEN"}:
        texts.append(_OF_OTHERS[wanted.protocol])
    if "LISTEN" in states:
        texts.append(_OF_LISTENERS)
    return texts


def _state(record: SocketRecord) -> str:
    from connectx.linux.tcp_states import STATE_NAMES  # noqa: PLC0415 - as above

    return STATE_NAMES.get(record.state, str(record.state))


def _source(record: SocketRecord) -> Endpoint:
    return _end(record, record.source, record.source_port)


def _destination(record: SocketRecord) -> Endpoint:
    return _end(record, record.destination, record.destination_port)


def _end(record: SocketRecord, address: bytes, port: int) -> Endpoint:
    from connectx.observe.scopes import needs_scope  # noqa: PLC0415 - as above

    scope = record.interface if needs_scope(address) else 0
    return Endpoint(inet_ntop(record.family, address), port, 0, scope)
