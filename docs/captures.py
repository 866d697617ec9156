"""The output of commands that the documentation shows, from real runs.

    python -m docs.captures

Each command runs on the machine of docs.machine, in a private network, and its output goes to
docs/outputs. tests/test_outputs.py runs the same commands on a smaller machine and compares.
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

from docs.machine import PORTS, machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.addresses import PortRange

OUTPUTS: Final = Path(__file__).parent / "outputs"

#: Commands on the busy machine, by the name of the file that shows them.
ON_THE_MACHINE: Final = {
    "usage": "connectx usage --top 5",
    "usage-processes": "connectx usage --destination 198.51.100.9:443 --processes",
    "doctor": "connectx doctor",
    "doctor-errno": (
        "connectx doctor --errno 99 --source 192.0.2.7 --destination 198.51.100.9:443"
    ),
    "kill": "connectx kill --destination 198.51.100.10:8443",
}

#: Commands that make networks of their own.
BY_THEMSELVES: Final = {
    "demo": "connectx demo",
    "simulate": "connectx lab simulate --ports 40000-40007 --seed 1",
    "latency": "connectx lab latency --ports 40000-47999",
    "techniques": "connectx lab techniques --protocol udp --family 4",
}

EXPORTER: Final = "connectx exporter --top 1"
FETCH: Final = "curl --silent http://127.0.0.1:9764/metrics | grep ^connectx_source_utilisation"
TOP: Final = "connectx top --interval 1"

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


def capture_metrics() -> str:
    """What the exporter serves."""
    with _started(EXPORTER), urllib.request.urlopen("http://127.0.0.1:9764/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("connectx_source_utilisation")]
    return _shown(FETCH, "\n".join(found))


def capture_top() -> str:
    """A picture of ``connectx top`` after some counts, as SVG."""
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
            _argv(TOP), stdin=inside, stdout=inside, stderr=inside, env=_env() | wanted
        ) as process:
            os.close(inside)
            with contextlib.suppress(OSError):  # EIO, once the command has ended.
                while select.select([terminal], [], [], 30)[0]:
                    os.read(terminal, 65536)
        os.close(terminal)
        if process.returncode or not picture.exists():
            raise RuntimeError(f"{TOP}: status {process.returncode}")
        # Without the fonts, which a browser would fetch.
        return re.sub(r"@font-face \{.*?\}", "", picture.read_text("utf-8"), flags=re.DOTALL)


def on_the_machine(ports: PortRange = PORTS) -> Iterator[tuple[str, str]]:
    """The files that show commands on the busy machine: name and text."""
    with machine(ports) as open_more:
        for name, command in ON_THE_MACHINE.items():
            yield f"{name}.txt", capture(command)
        yield "metrics.txt", capture_metrics()
        open_more()
        yield "top.svg", capture_top()


def main() -> None:
    """Write all files."""
    OUTPUTS.mkdir(exist_ok=True)
    for name, text in on_the_machine():
        (OUTPUTS / name).write_text(text, "utf-8")
    for name, command in BY_THEMSELVES.items():
        (OUTPUTS / f"{name}.txt").write_text(capture(command), "utf-8")


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
