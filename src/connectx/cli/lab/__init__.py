"""``connectx lab``: one module for each experiment of connectx.lab, which prints what it finds.

Each has what :class:`connectx.cli.command.Command` lists.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final, cast

from connectx.cli.command import FAILED, Command, add
from connectx.lab.resources import CannotStartError

if TYPE_CHECKING:
    import argparse

NAME: Final = "lab"
HELP: Final = "Make the articles' tables and figures on this machine's kernel."
EXAMPLE: Final = "connectx lab techniques --protocol udp"

#: The experiments, by module name.
EXPERIMENTS: Final = ("techniques", "latency", "simulate", "report")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the experiments."""
    subparsers = parser.add_subparsers(metavar="experiment", required=True)
    for name in EXPERIMENTS:
        experiment = cast("Command", importlib.import_module(f"connectx.cli.lab.{name}"))
        add(subparsers, experiment).set_defaults(experiment=experiment)


def run(arguments: argparse.Namespace) -> int:
    """Run an experiment, and return its exit status."""
    experiment: Command = arguments.experiment
    try:
        return experiment.run(arguments)
    except CannotStartError as error:
        print(f"connectx lab {experiment.NAME}: {error}", file=sys.stderr)
        return FAILED
