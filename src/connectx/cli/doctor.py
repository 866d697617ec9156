"""``connectx doctor``: what is wrong with the source ports here, and what helps against it."""

from __future__ import annotations

import argparse
import errno
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from connectx._diagnosis.causes import FOLKLORE, LASTING
from connectx._diagnosis.finding import SHOWN, Severity
from connectx.addresses import HIGHEST_PORT, Endpoint, PortRange
from connectx.cli.arguments import add_netns, endpoint, port_range, seconds
from connectx.cli.command import CommandError, errors_reported
from connectx.cli.output import error_text, plural
from connectx.cli.page import Page, Piece
from connectx.cli.progress import spinner
from connectx.cli.schemas import add_json, of_endpoint, of_pair, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx._diagnosis.facts import Call
    from connectx._diagnosis.finding import Finding
    from connectx.observe.doctor import Diagnosis

NAME: Final = "doctor"
HELP: Final = "Find out what is wrong with the source ports here, or why a call failed."
EXAMPLE: Final = "connectx doctor --errno 99 --destination 198.51.100.9:443"

NOTHING_FOUND: Final = 0
FOUND: Final = 1
COULD_NOT_LOOK: Final = 2

#: The greatest width of the text, in columns.
_WIDEST: Final = 100

_COLOURS: Final = {"critical": "bold red", "warning": "yellow", "note": "cyan"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    asked = parser.add_argument_group("about a call that failed")
    asked.add_argument(
        "--errno",
        type=_errno,
        default=0,
        metavar="ERRNO",
        help="the errno it failed with, as a name or a number: EADDRNOTAVAIL or 99",
    )
    asked.add_argument(
        "--destination", metavar="HOST:PORT", help="where it went: an address or a hostname"
    )
    asked.add_argument(
        "--source",
        type=endpoint,
        default=Endpoint("", 0),
        metavar="ADDRESS[:PORT]",
        help="its source: an address, with or without a port; :PORT for any address",
    )
    asked.add_argument(
        "--protocol",
        choices=["tcp", "mptcp", "udp", "udplite"],
        default="tcp",
        help="its protocol (default: tcp)",
    )
    asked.add_argument(
        "--port-range",
        type=port_range,
        metavar="LOW-HIGH",
        help="the range of source ports that it asked for",
    )
    add_netns(parser)
    parser.add_argument(
        "--seconds",
        type=seconds(0),
        default=1.0,
        help="how long to observe, for rates and the time left (default: 1)",
    )
    parser.add_argument(
        "--idle",
        type=seconds(0),
        default=300.0,
        metavar="SECONDS",
        help="count a connection as idle after so long without data (default: 300)",
    )
    parser.add_argument(
        "--verbose",
        "-v",
        action="store_true",
        help="show every finding in full, and what does not help",
    )
    add_json(parser, "doctor", "print JSON instead of text")
    parser.epilog = (
        f"{parser.epilog}\n\nexit status:\n"
        f"  {NOTHING_FOUND}    no findings, or only notes\n"
        f"  {FOUND}    findings\n"
        f"  {COULD_NOT_LOOK}    the examination failed, or wrong usage"
    )


def run(arguments: argparse.Namespace) -> int:
    """Examine the machine, and print the findings."""
    from connectx.observe.doctor import examine  # noqa: PLC0415 - --help needs none of it

    with errors_reported(COULD_NOT_LOOK):
        with spinner("looking for sockets") as progress:
            diagnosis = examine(
                protocol=arguments.protocol,
                number=arguments.errno,
                source=arguments.source,
                destination=_destinations(arguments.destination),
                ports=arguments.port_range,
                netns=arguments.netns,
                seconds=arguments.seconds,
                idle_after=arguments.idle,
                progress=progress,
            )
        if arguments.json:
            print_json("doctor", _as_json(diagnosis))
        else:
            _show(diagnosis, verbose=arguments.verbose)
        # Now: the exit status of a lost output must not be that of findings.
        sys.stdout.flush()
    return NOTHING_FOUND if diagnosis.healthy else FOUND


def _destinations(text: str | None) -> list[Endpoint]:
    """Return the end that HOST:PORT means; every address of a hostname."""
    if text is None:
        return []
    try:
        return [endpoint(text)]
    except argparse.ArgumentTypeError as error:
        host, _, port = text.rpartition(":")
        if not host or ":" in host:
            raise ValueError(f"--destination: {error}") from None
    number = int(port) if port.isascii() and port.isdecimal() else 0
    if not 0 < number <= HIGHEST_PORT:
        raise ValueError(f"--destination: {text!r} has no port from 1 to {HIGHEST_PORT}")
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except OSError as error:
        what = f"cannot resolve {host!r}: {error_text(error)}"
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            # That may be what is to be found out: a resolver needs a UDP port, too.
            print(f"connectx doctor: {what}; looking without a destination", file=sys.stderr)
            return []
        raise CommandError(what, COULD_NOT_LOOK) from error
    return [Endpoint(*address) for *_, address in found]


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "taken_at": diagnosis.taken_at.isoformat(),
        "netns": diagnosis.netns,
        "verdict": diagnosis.verdict,
        "healthy": diagnosis.healthy,
        "calls": [_call_as_json(call) for call in diagnosis.calls],
        "findings": [
            {
                "name": finding.cause.name,
                "severity": finding.severity.value,
                "title": finding.title,
                "evidence": [*finding.evidence, *finding.details],
                "fields": _plain(finding.fields),
                "also": [
                    {"title": each.title, "fields": _plain(each.fields)} for each in finding.also
                ],
                "why": finding.cause.summary,
                "remedies": [
                    {
                        "text": remedy.text,
                        "command": finding.command(remedy),
                        "breaks": remedy.breaks,
                    }
                    for remedy in finding.cause.remedies
                ],
            }
            for finding in diagnosis.findings
        ],
        "unseen": list(diagnosis.unseen),
    }


def _call_as_json(call: Call) -> dict[str, Any]:
    return {
        "protocol": call.protocol,
        "errno": errno.errorcode.get(call.number),
        "source": of_endpoint(call.source),
        "destination": _plain(call.destination),
        "ports": _plain(call.ports),
        "census_source": call.census_source,
        "census": _plain(call.census),
        "unreachable": call.unreachable,
    }


def _plain(value: Any) -> Any:
    """Return a value of a finding in JSON's types."""
    from connectx._diagnosis.facts import Census, WatchedPair  # noqa: PLC0415 - --help needs none

    if isinstance(value, Endpoint):
        return of_endpoint(value)
    if isinstance(value, WatchedPair):
        trend = {"rate": round(value.rate, 1), "idle": value.idle}
        return of_pair(value.row, processes=True) | trend
    if isinstance(value, Census):
        counts = value._asdict()
        value = {"range": counts.pop("ports"), **counts, "free": value.free}
    elif hasattr(value, "_asdict") and not isinstance(value, PortRange):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _show(diagnosis: Diagnosis, *, verbose: bool) -> None:
    """Print the verdict first, then what it rests on, and the rest as a list of titles."""
    page = Page(_WIDEST)
    first, *others = (diagnosis.verdict or _headline(diagnosis)).split("\n")
    page.paragraph(first, style="bold")
    for line in others:
        page.paragraph(line)
    if diagnosis.verdict:
        main = diagnosis.because
    else:
        main = tuple(each for each in diagnosis.findings if each.severity is not Severity.NOTE)
    rest = [each for each in diagnosis.findings if each not in main]
    for finding in (*main, *(rest if verbose else ())):
        _show_finding(finding, page, said=diagnosis.verdict, verbose=verbose)
    shown = diagnosis.findings if verbose else main
    if any(
        "sysctl -w " in each.command(remedy) for each in shown for remedy in each.cause.remedies
    ):
        page.paragraph(f"{LASTING}.")
    if verbose:
        _show_folklore(main if diagnosis.verdict else diagnosis.findings, page)
    elif rest:
        page.paragraph("")
        page.paragraph("Also found (--verbose shows all of it):")
        for finding in rest:
            page.paragraph(_title(finding), "  ", "    ", style=_COLOURS[finding.severity.value])
    if diagnosis.unseen:
        page.paragraph("")
    for line in diagnosis.unseen:
        page.paragraph(f"not seen: {line}", rest="  ", style="dim")


def _headline(diagnosis: Diagnosis) -> str:
    """Return the verdict on a machine, where nobody has asked about a call."""
    counts = {
        severity: sum(each.severity is severity for each in diagnosis.findings)
        for severity in Severity
    }
    notes = plural(counts[Severity.NOTE], "note") if counts[Severity.NOTE] else ""
    if diagnosis.healthy:
        nothing = "Nothing is wrong with the source ports of this network namespace"
        return f"{nothing}; {notes}." if notes else f"{nothing}."
    words = [
        plural(counts[Severity.CRITICAL], "critical problem") if counts[Severity.CRITICAL] else "",
        plural(counts[Severity.WARNING], "warning") if counts[Severity.WARNING] else "",
        notes,
    ]
    return f"Found in this network namespace: {', '.join(filter(None, words))}."


def _title(finding: Finding) -> str:
    return f"{finding.severity.value}: {finding.title}"


def _show_finding(finding: Finding, page: Page, *, said: str, verbose: bool) -> None:
    """Print a finding without what the verdict has said already."""
    style = _COLOURS[finding.severity.value]
    page.paragraph("")
    if finding.title.lower() in said.lower():
        page.paragraph(f"cause: {finding.cause.summary}", rest="  ", style=style)
    else:
        page.paragraph(_title(finding), rest="  ", style=style)
        if finding.cause.summary.lower() not in said.lower():
            page.paragraph(finding.cause.summary, "  ")
    for line in (*finding.evidence, *(finding.details if verbose else ())):
        if line not in said:
            page.paragraph(line, "  ", "    ")
    _show_others(finding, page, said=said, verbose=verbose)
    for remedy in finding.cause.remedies:
        page.paragraph(remedy.text, "  - ")
        commands = [each.command(remedy) for each in (finding, *finding.also)]
        for command in filter(None, dict.fromkeys(commands)):
            page.line(Piece(f"      {command}", "bold"))
        if any(commands):
            page.paragraph(f"it breaks: {remedy.breaks}", "    ", style="dim")


def _show_others(finding: Finding, page: Page, *, said: str, verbose: bool) -> None:
    """Print the other findings of the same cause: their titles, or all that shows them."""
    shown = finding.also if verbose else finding.also[:SHOWN]
    for other in shown:
        if other.title.lower() in said.lower():
            continue
        page.paragraph(f"also: {other.title}", "  ", "    ")
        for line in (*other.evidence, *other.details) if verbose else ():
            page.paragraph(line, "    ", "      ")
    if more := len(finding.also) - len(shown):
        page.paragraph(f"also: {more:,} more, which --verbose lists", "  ", "    ")


def _show_folklore(findings: Iterable[Finding], page: Page) -> None:
    causes = {finding.cause for finding in findings}
    fitting = [each for each in FOLKLORE if causes & each.against]
    if fitting:
        page.paragraph("")
        page.paragraph("What does not help:")
    for each in fitting:
        page.paragraph(f"{each.name} {each.truth}", "  - ")


def _errno(text: str) -> int:
    # A resolver's call that got EAGAIN, in the words of getaddrinfo(3).
    name = "EAGAIN" if text.upper() == "EAI_AGAIN" else text.upper()
    number = getattr(errno, name, None) if name.startswith("E") else None
    if number is None and text.isascii() and text.isdecimal():
        number = int(text)
    if not isinstance(number, int) or number not in errno.errorcode:
        raise argparse.ArgumentTypeError(f"{text!r} is not an errno, such as EADDRNOTAVAIL or 99")
    return number
