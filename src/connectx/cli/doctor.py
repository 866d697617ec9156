"""``connectx doctor``: what is wrong with the source ports here, and what helps against it."""

from __future__ import annotations

import argparse
import errno
import json
import socket
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final

from connectx.addresses import HIGHEST_PORT, Endpoint
from connectx.cli.arguments import add_json, add_netns, endpoint, port_range, seconds
from connectx.cli.command import CommandError, errors_reported
from connectx.cli.output import error_text

if TYPE_CHECKING:
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
    add_json(parser)
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
        diagnosis = examine(
            protocol=arguments.protocol,
            number=arguments.errno,
            source=arguments.source,
            destination=_destinations(arguments.destination),
            ports=arguments.port_range,
            netns=arguments.netns,
            seconds=arguments.seconds,
            idle_after=arguments.idle,
        )
        if arguments.json:
            print(json.dumps(_as_json(diagnosis), indent=2))
        else:
            _show(diagnosis)
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
        host, colon, port = text.rpartition(":")
        number = int(port) if port.isascii() and port.isdecimal() else -1
        if not (host and colon and 0 < number <= HIGHEST_PORT) or ":" in host:
            raise ValueError(str(error)) from None
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CommandError(
            f"cannot resolve {host!r}: {error_text(error)}", COULD_NOT_LOOK
        ) from error
    return [Endpoint(*address) for *_, address in found]


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "taken_at": diagnosis.taken_at.isoformat(),
        "netns": diagnosis.netns,
        "verdict": diagnosis.verdict,
        "findings": [
            {
                "name": finding.cause.name,
                "severity": finding.severity.value,
                "title": finding.title,
                "evidence": list(finding.evidence),
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


def _show(diagnosis: Diagnosis) -> None:
    from connectx._diagnosis.causes import OF_EXHAUSTION  # noqa: PLC0415 - as above

    page = _Page()
    for line in filter(None, diagnosis.verdict.split("\n")):
        page.paragraph(line, style="bold")
        page.paragraph("")
    explained: set[str] = set()
    for finding in diagnosis.findings:
        _show_finding(finding, page, brief=finding.cause.summary in explained)
        explained.add(finding.cause.summary)
    if not diagnosis.findings:
        page.paragraph("Nothing is wrong with the source ports of this network namespace.")
    elif any(finding.cause in OF_EXHAUSTION for finding in diagnosis.findings):
        _show_folklore(page)
    for line in diagnosis.unseen:
        page.paragraph(f"not seen: {line}", rest="  ", style="dim")


def _show_finding(finding: Finding, page: _Page, *, brief: bool) -> None:
    """Print a finding; a brief one leaves out what another of the same cause has said."""
    severity = finding.severity.value
    page.paragraph(f"{severity}: {finding.title}", rest="  ", style=_COLOURS[severity])
    for line in finding.evidence if brief else (*finding.evidence, finding.cause.summary):
        page.paragraph(line, "  ")
    for remedy in () if brief else finding.cause.remedies:
        page.paragraph(remedy.text, "  - ")
        if command := finding.command(remedy):
            page.unbroken(f"      {command}")
            page.paragraph(f"it breaks: {remedy.breaks}", "    ", style="dim")
    page.paragraph("")


def _show_folklore(page: _Page) -> None:
    from connectx._diagnosis.causes import FOLKLORE  # noqa: PLC0415 - as above

    page.paragraph("What does not help:")
    for name, truth in FOLKLORE:
        page.paragraph(f"{name} {truth}", "  - ")
    page.paragraph("")


class _Page:
    """Standard output: text wrapped to its width, with colours on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - from the tools extra

        self._console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
        self._width = max(40, min(self._console.width, _WIDEST))

    def paragraph(self, text: str, first: str = "", rest: str = "", style: str = "") -> None:
        """Print wrapped text. `first` begins the first line, `rest` or blanks the others."""
        rest = rest or " " * len(first)
        lines = textwrap.wrap(text, self._width, initial_indent=first, subsequent_indent=rest)
        self._console.print("\n".join(lines), style=style)

    def unbroken(self, text: str) -> None:
        """Print a line that is never wrapped, so that it can be copied."""
        self._console.print(text, style="bold")


def _errno(text: str) -> int:
    number = getattr(errno, text.upper(), None) if text.upper().startswith("E") else None
    if number is None and text.isascii() and text.isdecimal():
        number = int(text)
    if not isinstance(number, int) or number not in errno.errorcode:
        raise argparse.ArgumentTypeError(f"{text!r} is not an errno, such as EADDRNOTAVAIL or 99")
    return number
