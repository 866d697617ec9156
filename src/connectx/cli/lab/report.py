"""``connectx lab report``: runs all experiments and writes what they find as one page."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectx.cli.arguments import unprivileged_port_range
from connectx.cli.progress import progress_bars
from connectx.lab.machine import describe
from connectx.lab.resources import CannotStartError, in_first_network, require
from connectx.lab.techniques import require_descriptors

if TYPE_CHECKING:
    import argparse

    from connectx.addresses import PortRange

NAME: Final = "report"
HELP: Final = "Run all experiments and draw them on one page that opens in any browser."
EXAMPLE: Final = "connectx lab report --output report.html --figures figures"

_DESCRIPTION: Final = f"""\
{HELP}

It runs what techniques, latency and simulate do, in private network namespaces, and
writes one HTML file that needs nothing else: figures, tables, the machine, and the
command for each part. With the default range it takes some five minutes on two cores;
a smaller one takes less: the connections of a fill past its half cost the more, the
larger the range.
"""

#: Ports that a fill should have, to show anything.
_LEAST_PORTS: Final = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("connectx-lab-report.html"),
        metavar="FILE",
        help="where to write the page (default: %(default)s)",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="write each figure as PNG and SVG, too, into this directory",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="write the figures' numbers as JSON, too, without the single samples",
    )
    parser.add_argument(
        "--ports",
        type=unprivileged_port_range,
        # The range of the article "connect() - why are you so slow?".
        default="9024-65535",
        metavar="LOW-HIGH",
        help="the range of source ports (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run everything; 1 if something was not as expected, not finished, or could not begin."""
    _require(arguments.ports)
    # First of all, since they come from the tools extra and everything else takes minutes.
    from connectx.lab.report import experiments, page  # noqa: PLC0415

    require(experiments.largest_fill(arguments.ports), both_ends=False)
    require_descriptors()
    _try_places(arguments)
    # Before another network is entered, whose sysctls are no longer the machine's.
    machine = describe()
    with in_first_network(), progress_bars() as watch:
        findings = experiments.run(arguments.ports, machine, watch)
    _write(arguments.output, page.render(findings))
    if arguments.data is not None:
        _write(arguments.data, page.as_text(findings))
    if arguments.figures is not None:
        written = page.write_figures(findings, arguments.figures)
        print(f"wrote {len(written)} figures to {arguments.figures}")
    tables = findings.techniques
    print(
        f"{len(tables.compared) - tables.disagreements:,} of {len(tables.compared):,} findings on "
        "techniques are as expected"
    )
    for way in findings.unfinished:
        print(f"the fill by {way} was stopped after {experiments.TIME_LIMIT:.0f} s")
    print(
        f"{findings.seconds:.0f} s in private network namespaces, which are gone: "
        f"{'; '.join(findings.changes)}. Nothing else was changed."
    )
    return int(bool(tables.disagreements or findings.unfinished))


def _require(ports: PortRange) -> None:
    if ports.size < _LEAST_PORTS:
        raise CannotStartError(f"{ports} is too small for a report: {_LEAST_PORTS} ports at least")


def _try_places(arguments: argparse.Namespace) -> None:
    """Find out now, and not in five minutes, that something cannot be written."""
    try:
        if arguments.figures is not None:
            arguments.figures.mkdir(parents=True, exist_ok=True)
        for path in (arguments.output, arguments.data):
            if path is not None:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                if not path.exists() or path.is_file():
                    # Nothing is left of it, whatever becomes of the experiments.
                    tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise CannotStartError(f"cannot write {error.filename}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Write a file in one go: where that fails, what was there before stays."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe, whose place no file is to take.
            path.write_text(text, encoding="utf-8")
        else:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        raise CannotStartError(f"cannot write {path}: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    print(f"wrote {path} ({len(text.encode()) / 1e6:.1f} MB)")
