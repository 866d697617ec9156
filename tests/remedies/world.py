"""What executes a remedy: a network to build the situation in, and the doctor to be asked about it.

A case builds a situation, sees the call fail, has the doctor say what helps, does exactly that,
and sees the call succeed and what the remedy is said to break. `follows` says which remedy of
which cause a case executes; tests/remedies/test_every_remedy.py finds those that none executes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from connectx.linux import netns
from connectx.observe.namespace import visiting
from tests import limits
from tests.api.calls import reset_on_close
from tests.observe.helpers import HERE, HIGH, LOW, PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import connectx
    from connectx._diagnosis.causes import Cause, Remedy
    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers

    Case = Callable[["World"], None]

#: The cases, by what they execute.
EXECUTED: Final[dict[tuple[Cause, Remedy], Case]] = {}

#: The destination of calls, as the doctor is asked about it.
TO: Final = ("--destination", f"{HERE[0]}:{PORT}")


def follows(cause: Cause, beginning: str) -> Callable[[Case], Case]:
    """Have a case execute the remedy of a cause whose text begins so."""
    (remedy,) = (each for each in cause.remedies if each.text.startswith(beginning))
    assert (cause, remedy) not in EXECUTED

    def register(case: Case) -> Case:
        EXECUTED[cause, remedy] = case
        return case

    return register


class World:
    """A private network with a small range of ports, and the remedy that is executed in it."""

    def __init__(
        self,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
        remedy: tuple[Cause, Remedy],
    ) -> None:
        self.network, self.servers, self.closing = network, servers, closing
        self.cause, self.remedy = remedy
        network.port_range(LOW, HIGH)

    # Calls.

    def connect(
        self,
        to: tuple[Any, ...] = HERE,
        source: tuple[Any, ...] | None = None,
        options: tuple[tuple[int, int, int], ...] = (),
        kind: int = socket.SOCK_STREAM,
    ) -> socket.socket:
        """Connect plainly, and close at the end of the test with a reset."""
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        sock = self.closing.enter_context(socket.socket(family, kind))
        sock.settimeout(limits.LIMIT)
        for option in options:
            sock.setsockopt(*option)
        if source is not None:
            sock.bind(source)
        sock.connect(to)
        if kind == socket.SOCK_STREAM:
            reset_on_close(sock)
        return sock

    def fails(
        self, number: int, call: Callable[..., object], *arguments: Any, **named: Any
    ) -> None:
        """Have a call fail with an errno."""
        with pytest.raises(OSError, match=rf"^\[Errno {number}\]") as caught:
            call(*arguments, **named)
        assert caught.value.errno == number, caught.value

    # The doctor.

    def read(self, *question: str) -> str:
        """Ask the doctor, see the remedy printed, and return its command; "" for none.

        A command is printed on a line of its own, and what it breaks below it.
        """
        printed = self.ask("--verbose", *question)
        findings = json.loads(self.ask("--json", *question))["findings"]
        (remedy,) = (
            remedy
            for finding in findings
            if finding["name"] == self.cause.name
            for remedy in finding["remedies"]
            if remedy["text"] == self.remedy.text
        )
        words = " ".join(printed.split())
        assert self.remedy.text in words
        command = str(remedy["command"])
        if command:
            assert command in map(str.strip, printed.splitlines())
            assert f"it breaks: {self.remedy.breaks}" in words
        return command

    def follow(self, *question: str) -> None:
        """Ask the doctor, and run the command that it prints."""
        command = self.read(*question)
        assert command
        self.run(command)

    def explained(self, error: connectx.ConnectxError) -> None:
        """See the remedy in what an error of connectx says."""
        assert f"  - {self.remedy.text}" in error.explain().splitlines()

    def commands_in_text(self) -> list[str]:
        """The commands between the backticks of the remedy's text."""
        return self.remedy.text.split("`")[1::2]

    def run(self, command: str) -> str:
        """Run a shell command as it is, and return what it prints."""
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=limits.COMMAND_LIMIT,
            # `connectx` is beside the interpreter, as an activated environment has it.
            env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},  # noqa: PTH120
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def ask(self, *arguments: str) -> str:
        """Ask the doctor, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "connectx", "doctor", "--seconds", "0", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=limits.COMMAND_LIMIT,
        )
        assert not done.stderr, done.stderr
        return done.stdout

    # Another host.

    @contextlib.contextmanager
    def another_host(self, here: str, there: str, device: str = "v0") -> Iterator[Other]:
        """Join another network to this one, by devices v0 and v1 with an address each.

        The addresses have a prefix, as in "192.0.2.7/24".
        """
        with netns.private_network():
            descriptor = netns.open_namespace()
        try:
            peer = device.replace("v", "w")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            self.run(f"ip link add {device} type veth peer name {peer} netns {path}")
            other = Other(descriptor)
            nodad = " nodad" if ":" in here else ""
            self.run(f"ip address add {here} dev {device}{nodad} && ip link set {device} up")
            with other.entered():
                self.run(f"ip address add {there} dev {peer}{nodad} && ip link set {peer} up")
            yield other
        finally:
            os.close(descriptor)


class Other:
    """The network of another host."""

    def __init__(self, descriptor: int) -> None:
        #: The namespace's file, for other processes.
        self.path = f"/proc/{os.getpid()}/fd/{descriptor}"

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Move the calling thread to it for a block."""
        return visiting(self.path)
