"""What the documentation shows of real runs: output of commands, and the table of integrations.

    python -m docs.captures

Each command runs on the machine of docs.machine, in a private network, and its output goes to
docs/outputs. tests/test_outputs.py runs the same commands on a smaller machine and compares. The
table is of tests/integrations, which compares it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pty
import re
import select
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

from docs.machine import machine
from tests.integrations import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUTPUTS: Final = Path(__file__).parent / "outputs"

#: Commands on the busy machine, by the name of the file that shows them.
ON_THE_MACHINE: Final = {
    "usage.txt": "connectx usage --top 5",
    "usage-processes.txt": "connectx usage --destination 198.51.100.9:443 --processes",
    "doctor.txt": "connectx doctor",
    "doctor-errno.txt": (
        "connectx doctor --errno 99 --source 192.0.2.7 --destination 198.51.100.9:443"
    ),
    "kill.txt": "connectx kill --destination 198.51.100.10:8443",
    "metrics.txt": "curl --silent http://127.0.0.1:9764/metrics | grep source_utilisation_ratio{",
    # The last one, since its machine grows.
    "top.svg": "connectx top --interval 1",
}

#: Commands that make networks of their own.
BY_THEMSELVES: Final = {
    "demo.txt": "connectx demo",
    "simulate.txt": "connectx lab simulate --ports 40000-40007 --seed 1",
    "latency.txt": "connectx lab latency --ports 40000-47999",
    "techniques.txt": "connectx lab techniques --protocol udp --family 4",
}

_EXPORTER: Final = "connectx exporter --top 1"

_COLUMNS, _LINES = 80, 16


def capture(command: str) -> str:
    """A command and what it prints, as on a terminal of 80 columns.

    Raises:
        RuntimeError: if the command could not do its work.
    """
    done = subprocess.run(
        _argv(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_env(),
    )
    # 1 says that something was found.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command}: status {done.returncode}\n{done.stdout}")
    return _shown(command, done.stdout)


def _metrics(command: str) -> str:
    """What the exporter serves."""
    with _started(_EXPORTER), urllib.request.urlopen("http://127.0.0.1:9764/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if "source_utilisation_ratio{" in line]
    return _shown(command, "\n".join(found))


def _picture(command: str) -> str:
    """A picture of a live command after some counts, as SVG."""
    with tempfile.TemporaryDirectory() as directory:
        picture = Path(directory, "top.svg")
        wanted = {
            "TEXTUAL_SCREENSHOT": "6",
            "TEXTUAL_SCREENSHOT_LOCATION": directory,
            "TEXTUAL_SCREENSHOT_FILENAME": picture.name,
            "COLUMNS": str(_COLUMNS + 12),
            "LINES": str(_LINES),
        }
        terminal, inside = pty.openpty()
        with subprocess.Popen(
            _argv(command), stdin=inside, stdout=inside, stderr=inside, env=_env() | wanted
        ) as process:
            os.close(inside)
            with contextlib.suppress(OSError):  # EIO, once the command has ended.
                while select.select([terminal], [], [], 30)[0]:
                    os.read(terminal, 65536)
        os.close(terminal)
        if process.returncode or not picture.exists():
            raise RuntimeError(f"{command}: status {process.returncode}")
        # Without the fonts, which a browser would fetch.
        return re.sub(r"@font-face \{.*?\}", "", picture.read_text("utf-8"), flags=re.DOTALL)


def capture_on_machine(name: str, open_more: Callable[[], object]) -> str:
    """What a file of ON_THE_MACHINE is to have; called on that machine, with what it yields."""
    command = ON_THE_MACHINE[name]
    if name == "metrics.txt":
        return _metrics(command)
    if name == "top.svg":
        open_more()
        return _picture(command)
    return capture(command)


def main() -> None:
    """Write all files."""
    OUTPUTS.mkdir(exist_ok=True)
    with machine() as open_more:
        for name in ON_THE_MACHINE:
            (OUTPUTS / name).write_text(capture_on_machine(name, open_more), "utf-8")
    for name, command in BY_THEMSELVES.items():
        (OUTPUTS / name).write_text(capture(command), "utf-8")
    table.PUBLISHED.write_text(table.run(), "utf-8")


def _argv(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def _env() -> dict[str, str]:
    return os.environ | {"COLUMNS": str(_COLUMNS), "TERM": "xterm-256color"}


def _shown(command: str, output: str) -> str:
    # Of the kernel's release what comes before the builder's own suffix.
    release = platform.release()
    output = output.replace(release, release.partition("-")[0])
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "\n".join([f"$ {command}", *lines, ""])


@contextlib.contextmanager
def _started(command: str) -> Iterator[None]:
    """A command that serves, from its first line on."""
    with subprocess.Popen(
        _argv(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_env()
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
