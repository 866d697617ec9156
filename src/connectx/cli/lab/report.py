"""``connectx lab report``: runs all experiments and writes what they find on one page."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectx.addresses import PortRange
from connectx.cli.command import FAILED, OK
from connectx.cli.lab.arguments import add_ports
from connectx.cli.lab.output import changes_text
from connectx.cli.progress import progress_bars
from connectx.cli.schemas import add_json_schema, tagged
from connectx.lab.machine import describe
from connectx.lab.resources import CannotStartError, in_first_network, require
from connectx.lab.techniques import require_descriptors

if TYPE_CHECKING:
    import argparse

NAME: Final = "report"
HELP: Final = "Run all experiments and draw them on one page that opens in any browser."
EXAMPLE: Final = "connectx lab report --output report.html --figures figures"

_DESCRIPTION: Final = f"""\
{HELP}

It runs the experiments of techniques, latency and simulate in private network namespaces,
and writes one HTML file that needs nothing else: figures, tables, the machine, and the
command for each part. With the default range it takes about five minutes on two cores. A
smaller range takes less: the larger the range, the more its second half costs.
"""

#: The range of the article "connect() - why are you so slow?" (2024).
_PORTS: Final = PortRange(9024, 65535)
#: A fill of fewer ports shows nothing.
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
        help="also write each figure as PNG and SVG into this directory",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="also write the figures' numbers as JSON, without single samples",
    )
    add_json_schema(parser, "lab-report", "--data")
    add_ports(parser, _PORTS)


def run(arguments: argparse.Namespace) -> int:
    """Run everything; it fails if something is not as expected, or not finished."""
    if arguments.ports.size < _LEAST_PORTS:
        raise CannotStartError(
            f"{arguments.ports} is too small for a report, which needs {_LEAST_PORTS} ports"
        )
    # Before everything else, which takes minutes: they need the lab extra.
    from connectx.lab.report import experiments, page  # noqa: PLC0415

    require(experiments.largest_fill(arguments.ports), both_ends=False)
    require_descriptors()
    _try_places(arguments)
    # Before it enters another network, whose sysctls are not the machine's.
    machine = describe()
    with in_first_network(), progress_bars() as watch:
        findings = experiments.run(arguments.ports, machine, watch)
    _write(arguments.output, page.render(findings))
    if arguments.data is not None:
        found = tagged("lab-report", page.as_json(findings))
        text = json.dumps(found, separators=(",", ":"), allow_nan=False)
        _write(arguments.data, f"{text}\n")
    if arguments.figures is not None:
        written = page.write_figures(findings, arguments.figures)
        print(f"wrote {len(written)} figures to {arguments.figures}")
    tables = findings.techniques
    print(
        f"{len(tables.compared) - tables.disagreements:,} of {len(tables.compared):,} findings on "
        "techniques are as expected"
    )
    for way in findings.unfinished:
        print(f"the fill by {way} gave up after {experiments.TIME_LIMIT:.0f} s")
    print(f"{findings.seconds:.0f} s. {changes_text(findings.changes)}")
    return FAILED if tables.disagreements or findings.unfinished else OK


def _try_places(arguments: argparse.Namespace) -> None:
    """Find out before the experiments, which take minutes, that something cannot be written."""
    try:
        if arguments.figures is not None:
            arguments.figures.mkdir(parents=True, exist_ok=True)
        for path in (arguments.output, arguments.data):
            if path is not None:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                if not path.exists() or path.is_file():
                    _try_place(path)
    except OSError as error:
        raise CannotStartError(f"cannot write {error.filename}: {error.strerror}") from error


def _try_place(path: Path) -> None:
    """Write a file beside, which leaves nothing behind, whatever becomes of the experiments."""
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        # Not the name of the temporary file, of which the user knows nothing.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, text: str) -> None:
    """Write a file all at once: if that fails, what was there before stays."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe, which no file may replace.
            path.write_text(text, encoding="utf-8")
        else:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        raise CannotStartError(f"cannot write {path}: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    print(f"wrote {path} ({len(text.encode()) / 1e6:.1f} MB)")
