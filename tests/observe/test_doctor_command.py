"""What `connectx doctor` prints, and how it exits."""

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from connectx.sandbox.networks import Network
from tests import limits
from tests.observe.helpers import HERE, HIGH, LOW, PORT, SIZE, leave_time_wait


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "connectx", "doctor", "--seconds", "0", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=limits.COMMAND_LIMIT,
        )

    def test_says_what_is_wrong_and_exits_1(self, connect: Callable[..., socket.socket]) -> None:
        for _ in range(SIZE):
            connect()
        done = self.run("--errno", "EADDRNOTAVAIL", "--destination", "127.0.0.1:9000")
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("99 (EADDRNOTAVAIL) here means exhaustion:")
        assert "\ncause: Open connections to this destination use the ports.\n" in done.stdout
        assert "it breaks: " in done.stdout
        assert "\x1b" not in done.stdout

    @pytest.mark.parametrize(
        "asked", [[], ["--destination", "127.0.0.1:9000"], ["--errno", "99"]], ids=str
    )
    def test_a_plain_exhaustion_fits_on_a_screen(
        self, connect: Callable[..., socket.socket], asked: list[str]
    ) -> None:
        for _ in range(SIZE):
            connect()
        done = self.run(*asked)
        assert len(done.stdout.splitlines()) <= 20
        owner = f"({os.getpid()}"
        assert done.stdout.count(owner) == 1
        assert done.stdout.index(owner) < done.stdout.index("  - ")
        assert "What does not help" not in done.stdout

    @pytest.mark.parametrize(
        "asked",
        [
            [],
            ["--errno", "11", "--protocol", "udp"],
            ["--errno", "11", "--protocol", "udp", "--destination", "127.0.0.1:9000"],
            ["--protocol", "udp", "--destination", "127.0.0.2:9000"],
        ],
        ids=str,
    )
    def test_an_exhaustion_of_udp_fits_on_a_screen(
        self, network: Network, closing: contextlib.ExitStack, asked: list[str]
    ) -> None:
        network.port_range(LOW, HIGH)
        for _ in range(SIZE):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.connect(HERE)
        done = self.run(*asked)
        assert len(done.stdout.splitlines()) <= 20
        assert done.stdout.count(f"({os.getpid()}") == 1

    @pytest.mark.usefixtures("binds_are_seen")
    def test_ports_that_are_bound_first_fit_on_a_screen(
        self, connect: Callable[..., socket.socket]
    ) -> None:
        for _ in range(SIZE):
            connect(("127.0.0.2", 0), ("127.0.0.3", PORT))
        done = self.run("--errno", "99", "--destination", "127.0.0.1:9000")
        assert len(done.stdout.splitlines()) <= 20
        assert done.stdout.count("locked by sockets that were bound") == 1

    def test_time_waits_fit_on_a_screen(self, listener: socket.socket, network: Network) -> None:
        network.sysctl("net.ipv4.tcp_tw_reuse", 0)
        for _ in range(SIZE):
            leave_time_wait(listener)
        asked = ["--errno", "99", "--destination", "127.0.0.1:9000"]
        done = self.run(*asked)
        assert len(done.stdout.splitlines()) <= 20
        assert done.stdout.count("sysctl -w net.ipv4.tcp_tw_reuse=1") == 1
        done = self.run(*asked, "--verbose")
        for name in ("tcp_tw_recycle=1 no longer", "tcp_fin_timeout does not", "SO_REUSEADDR on a"):
            assert " ".join(done.stdout.split()).count(name) == 1

    def test_folklore_of_tcp_is_not_about_udp(
        self, network: Network, closing: contextlib.ExitStack
    ) -> None:
        network.port_range(LOW, HIGH)
        for _ in range(SIZE):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.connect(HERE)
        done = self.run("--errno", "11", "--protocol", "udp", "--verbose")
        assert done.returncode == 1
        assert "What does not help" not in done.stdout

    def test_what_the_verdict_does_not_rest_on_is_listed(
        self, connect: Callable[..., socket.socket], network: Network
    ) -> None:
        network.sysctl("net.ipv4.tcp_timestamps", 0)
        for _ in range(SIZE):
            connect()
        asked = ["--errno", "99", "--destination", "127.0.0.1:9000"]
        done = self.run(*asked)
        assert "\n  warning: TCP timestamps are off\n" in done.stdout
        assert "tcp_timestamps=1" not in done.stdout
        done = self.run(*asked, "-v")
        assert "\nwarning: TCP timestamps are off\n" in done.stdout
        assert "      sysctl -w net.ipv4.tcp_timestamps=1\n" in done.stdout
        assert "0 in TIME_WAIT, 0 held by listeners" in " ".join(done.stdout.split())

    def test_several_pairs_of_one_cause_are_one_finding(
        self, connect: Callable[..., socket.socket]
    ) -> None:
        for number in range(2, 9):
            for _ in range(SIZE):
                connect(None, (f"127.0.1.{number}", PORT))
        done = self.run()
        assert done.stdout.startswith("Found in this network namespace: 1 critical problem.\n")
        assert done.stdout.count("\ncritical: ") == 1
        assert done.stdout.count("\n  also: 20 of 20") == 5
        assert done.stdout.count("ip_local_port_range=") == 1
        assert "\n  also: 1 more, which --verbose lists\n" in done.stdout
        assert self.run("--verbose").stdout.count("\n  also: 20 of 20") == 6

    def test_says_what_it_does_on_a_terminal(self, network: Network) -> None:
        del network
        outer, inner = pty.openpty()
        command = [sys.executable, "-m", "connectx", "doctor", "--seconds", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=inner) as process:
            os.close(inner)
            assert process.stdout is not None
            assert process.stdout.read().startswith(b"Nothing is wrong")
            process.wait(limits.COMMAND_LIMIT)
        drawn = os.read(outer, 4096)
        os.close(outer)
        assert b"| looking for sockets" in drawn
        # Nothing of it stays.
        assert drawn.endswith(b"\r\x1b[K\x1b[?25h")

    def test_exits_0_where_all_is_well(self, network: Network) -> None:
        del network
        done = self.run()
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Nothing is wrong")

    def test_exits_2_where_it_cannot_look(self, network: Network) -> None:
        del network
        done = self.run("--netns", "no-such-name")
        assert done.returncode == 2
        assert "no such network namespace" in done.stderr
        assert self.run("--errno", "EWHAT").returncode == 2

    def test_json(self, network: Network) -> None:
        network.sysctl("net.ipv4.tcp_timestamps", 0)
        done = self.run("--json", "--errno", "99")
        assert done.returncode == 1
        report = json.loads(done.stdout)
        assert report.keys() == {
            *("schema", "taken_at", "netns", "verdict", "healthy", "calls", "findings", "unseen")
        }
        (finding,) = report["findings"]
        assert finding["name"] == "timestamps off"
        assert finding["severity"] == "warning"
        assert finding["remedies"][0]["command"] == "sysctl -w net.ipv4.tcp_timestamps=1"
        assert all(finding[field] for field in ("title", "evidence", "why"))
