"""Runs the command line as on a host that has only Python, without any extra."""

from __future__ import annotations

import os
import subprocess
import sys

from connectx.cli.main import EXTRAS
from tests import limits

#: Not only what the extras name: what those packages bring is not there either.
_HIDDEN = (*EXTRAS, "jsonschema", "markdown_it", "markupsafe", "narwhals", "pygments")

_START = f"""
import sys
sys.modules.update(dict.fromkeys({_HIDDEN!r}))
from connectx.cli.main import main
sys.exit(main())
"""


def without_extras(
    *arguments: str, prefix: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", _START, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
        env={**os.environ, "COLUMNS": "80", **environment},
    )
