"""The machine whose output the documentation shows: a private network with busy programs in it.

The addresses are those of the examples: 192.0.2.7 and 192.0.2.8 are the machine's own,
198.51.100.9 and 198.51.100.10 are servers. Each program is a process, so that commands name it:

    python -m docs.machine PROGRAM PORTS
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import connectx
from connectx.addresses import PortRange
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The default of net.ipv4.ip_local_port_range.
PORTS: Final = PortRange(32768, 60999)

_SOURCES: Final = ("192.0.2.7", "192.0.2.8")
_SERVERS: Final = ("198.51.100.9", "198.51.100.10")
_ECHO: Final = ("198.51.100.10", 8443)


@contextlib.contextmanager
def machine(ports: PortRange = PORTS) -> Iterator[Callable[[], object]]:
    """Run a block on that machine; a smaller range makes everything smaller in proportion.

    Yields a function from whose call on one of the programs opens more and more connections.
    """
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(experiment_network())
        for address in (*_SOURCES, *_SERVERS):
            network.add_address(address)
        network.port_range(*ports)
        servers = stack.enter_context(Servers())
        for server in _SERVERS:
            servers.listen(server, 443)
        servers.receive(_SERVERS[0], 53)
        servers.echo(servers.listen(*_ECHO))
        for program in _ORDER:
            more = stack.enter_context(_running(program, ports))
        yield more


@contextlib.contextmanager
def _running(program: str, ports: PortRange) -> Iterator[Callable[[], object]]:
    """A program, from when it has opened what it opens; yields what makes it open more."""
    with subprocess.Popen(
        [sys.executable, "-m", __spec__.name, program, str(ports.low), str(ports.size)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.read(1) != b"!":
                raise RuntimeError(f"{program} has failed; its traceback is on standard error")
            yield partial(os.write, process.stdin.fileno(), b"+")
        finally:
            process.stdin.close()


def _metrics(ports: PortRange) -> Iterator[socket.socket]:
    """Listens on a port of the range."""
    yield socket.create_server(("", ports.low + ports.size // 4))


def _old_agent(ports: PortRange) -> Iterator[socket.socket]:
    """Binds before it connects, and so takes each port from everybody."""
    for _ in range(ports.size // 80):
        sock = socket.socket()
        sock.bind((_SOURCES[0], 0))
        sock.connect((_SERVERS[1], 443))
        yield sock


def _resolver(ports: PortRange) -> Iterator[socket.socket]:
    """Has many UDP sockets, which share their ports."""
    for _ in range(ports.size // 9):
        source = (_SOURCES[0], 0)
        yield connectx.create_connection(
            (_SERVERS[0], 53), source_address=source, type=socket.SOCK_DGRAM
        )


def _poller(ports: PortRange) -> Iterator[socket.socket]:
    """Closes its connections first, and leaves a TIME_WAIT each time."""
    for _ in range(ports.size // 4):
        sock = connectx.create_connection(_ECHO, source_address=(_SOURCES[1], 0))
        sock.shutdown(socket.SHUT_WR)
        # Nothing: the server has closed, too.
        sock.recv(1)
        yield sock
        sock.close()


def _crawler(ports: PortRange) -> Iterator[socket.socket]:
    """Takes ports of one source toward one server; three such processes leave none."""
    with contextlib.suppress(connectx.PortsExhausted):
        for _ in range(ports.size * 7 // 16):
            yield connectx.create_connection((_SERVERS[0], 443), source_address=(_SOURCES[0], 0))


def _fetcher(ports: PortRange) -> Iterator[socket.socket]:
    """Has half of the other source's ports toward that server."""
    for _ in range(ports.size // 2):
        yield connectx.create_connection((_SERVERS[0], 443), source_address=(_SOURCES[1], 0))


_PROGRAMS: Final[dict[str, Callable[[PortRange], Iterator[socket.socket]]]] = {
    "metrics": _metrics,
    "old-agent": _old_agent,
    "resolver": _resolver,
    "poller": _poller,
    "crawler": _crawler,
    "fetcher": _fetcher,
}
_ORDER: Final = (
    "metrics",
    "old-agent",
    "resolver",
    "poller",
    "crawler",
    "crawler",
    "crawler",
    "fetcher",
)


def _main(program: str, ports: PortRange) -> None:
    Path("/proc/self/comm").write_text(program, "utf-8")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened = list(_PROGRAMS[program](ports))
    sys.stdout.write("!")
    sys.stdout.flush()
    # Standard input has a byte when the program is to grow, and ends when it is to end.
    while os.read(sys.stdin.fileno(), 1):
        # Evenly, so that each look at it sees the same rate.
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            opened += _PROGRAMS[program](PortRange(1, max(2, ports.size // 1600)))


if __name__ == "__main__":
    name, low, size = sys.argv[1:]
    _main(name, PortRange(int(low), int(low) + int(size) - 1))
