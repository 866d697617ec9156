"""``connectx usage``: its output; tests/observe has whether the numbers are right."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from connectx.cli.main import main
from connectx.linux.netlink import NetlinkError
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import CAP_SYS_ADMIN, reset_on_close, without_capability
from tests.lab.commands import connectx, on_a_terminal, read_to_end, read_until
from tests.observe.helpers import leave_time_wait, named

LOW, HIGH = 20000, 20009
PORT = 9000
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def connections(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """One destination is full, one is filling, and there are two UDP sockets."""
    network.port_range(LOW, HIGH)
    servers.listen("::", PORT)

    def opened(host: str, kind: int = socket.SOCK_STREAM) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = closing.enter_context(socket.socket(family, kind))
        sock.connect((host, PORT))
        if kind == socket.SOCK_STREAM:
            reset_on_close(sock)

    for _ in range(10):
        opened("127.0.0.1")
    for _ in range(8):
        opened("::1")
    for _ in range(2):
        opened("127.0.0.1", socket.SOCK_DGRAM)


def lines(*arguments: str) -> list[list[str]]:
    done = connectx("usage", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def found(*arguments: str) -> dict[str, object]:
    done = connectx("usage", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, object] = json.loads(done.stdout)
    return result


class TestTable:
    def test_the_fullest_first(self) -> None:
        (head, unshared, titles, *rows) = lines()
        assert " ".join(unshared) == "udp: 8 of 10 ports are free for sockets without SO_REUSEADDR"
        assert " ".join(head[1:2] + head[3:]) == f"UTC, source ports {LOW}-{HIGH}, 0 reserved"
        assert " ".join(titles) == "protocol source destination in use of full states"
        assert [" ".join(row) for row in rows] == [
            "tcp 127.0.0.1 127.0.0.1:9000 10 10 100.0 % ESTAB 10",
            "tcp ::1 [::1]:9000 8 10 80.0 % ESTAB 8",
            "udp 127.0.0.1 127.0.0.1:9000 2 10 20.0 % ESTAB 2",
        ]

    def test_what_is_reserved_and_held(self, network: Network, servers: Servers) -> None:
        network.reserved_ports("20020-20021")
        servers.listen("127.0.0.1", 20025)
        (head, *_, last) = lines("--port-range", "20020-20029")
        assert " ".join(head[3:]) == "source ports 20020-20029, 2 reserved, 1 held (tcp)"
        assert " ".join(last) == "No source port in the range is in use."

    def test_the_first_only(self) -> None:
        (_, _, _, first, last) = lines("--top", "1")
        assert first[:3] == ["tcp", "127.0.0.1", "127.0.0.1:9000"]
        assert last == ["2", "more", "rows"]
        assert lines("--top", "3")[-1][0] == "udp"

    @pytest.mark.parametrize(
        "by, expected",
        [
            ("source", ["tcp 127.0.0.1 10 1", "tcp ::1 8 1", "udp 127.0.0.1 2 1"]),
            (
                "destination",
                [
                    "tcp 127.0.0.1:9000 10 10 1",
                    "tcp [::1]:9000 8 10 1",
                    "udp 127.0.0.1:9000 2 10 1",
                ],
            ),
            ("state", ["tcp ESTAB 18 2", "udp ESTAB 2 1"]),
        ],
    )
    def test_by(self, by: str, expected: list[str]) -> None:
        (_, _, titles, *rows) = lines("--by", by)
        assert " ".join(titles) == f"protocol {by} in use of pairs fullest pair full"
        for row, start in zip(rows, expected, strict=True):
            assert " ".join(row).startswith(f"{start} ")
        assert " ".join(rows[0]).endswith("127.0.0.1 to 127.0.0.1:9000 100.0 %")

    def test_by_process(self) -> None:
        (_, _, _, *rows) = lines("--by", "process")
        assert [row[0] for row in rows] == ["tcp", "udp"]
        assert all(f"({os.getpid()}" in " ".join(row) for row in rows)

    def test_with_processes(self) -> None:
        (_, _, titles, *rows) = lines("--processes")
        assert titles[-1] == "processes"
        assert len(rows) == 3
        assert all(f"({os.getpid()}" in " ".join(row) for row in rows)

    def test_what_looks_like_markup_or_an_emoji(
        self, network: Network, closing: contextlib.ExitStack
    ) -> None:
        closing.enter_context(named("x[/]y"))
        # rich would take ":a:" for an emoji and "[fd00::1]" for a style.
        hosts = ("fd00::1", "2001:db8:a:b::1")
        for host in hosts:
            network.add_address(host)
            sock = closing.enter_context(socket.create_connection((host, PORT)))
            reset_on_close(sock)
        for arguments in ([], ["--by", "destination"], ["--by", "process"], ["--processes"]):
            done = connectx("usage", *arguments)
            assert (done.returncode, done.stderr) == (0, "")
            if arguments != ["--by", "process"]:
                assert all(f" [{host}]:{PORT} " in done.stdout for host in hosts)
            if len(arguments) == 1:
                assert " x[/]y (" in done.stdout

    def test_filters(self) -> None:
        assert [row[0] for row in lines("--protocol", "udp")[3:]] == ["udp"]
        assert [row[1] for row in lines("--source", "::1")[3:]] == ["::1"]
        assert len(lines("--destination", f"127.0.0.1:{PORT}")[3:]) == 2
        assert len(lines("--destination", f":{PORT}")[3:]) == 3
        assert len(lines("--destination", "[::1]:1")[3:]) == 1

    def test_what_a_connect_may_take_over(self, network: Network, servers: Servers) -> None:
        network.sysctl("net.ipv4.tcp_tw_reuse", 1)
        if not Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
            pytest.skip("kernel: before 6.14 the delay is a second")
        # A millisecond, which passes while the command starts.
        network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
        listener = servers.listen("127.0.0.5", PORT + 1)
        leave_time_wait(listener, ("127.0.0.5", PORT + 1))
        (_, titles, row) = lines("--destination", "127.0.0.5", "--protocol", "tcp")
        assert " ".join(titles) == "protocol source destination in use reusable of full states"
        assert " ".join(row) == "tcp 127.0.0.1 127.0.0.5:9001 1 1 10 0.0 % TIME-WAIT 1"
        rows = found("--destination", "127.0.0.5")["rows"]
        assert isinstance(rows, list)
        assert [(row["in_use"], row["reusable"], row["utilisation"]) for row in rows] == [(1, 1, 0)]

    def test_link_local_addresses(self, network: Network, closing: contextlib.ExitStack) -> None:
        for device in ("one", "two"):
            network.add_device_pair(device, f"{device}-peer")
            network.add_address("fe80::1", 64, device)
            sock = closing.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            # By its address: the kernel gives the device another link-local one.
            sock.bind(("fe80::1", 0, 0, socket.if_nametoindex(device)))
            sock.connect(("fe80::9", PORT, 0, socket.if_nametoindex(device)))
        index = socket.if_nametoindex("one")
        (*_, row) = lines("--destination", f"[fe80::9%one]:{PORT}")
        assert row[:3] == ["udp", f"fe80::1%{index}", f"[fe80::9%{index}]:{PORT}"]
        assert len(lines("--destination", "fe80::9")[3:]) == 2
        assert connectx("usage", "--destination", "fe80::9%three").stderr == (
            "connectx usage: no interface is named 'three'\n"
        )


class TestJson:
    def test_schema(self) -> None:
        result = found()
        assert list(result) == [
            "schema", "taken_at", "netns", "range", "reserved", "held", "unshared", "by", "rows"
        ]  # fmt: skip
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", str(result["taken_at"]))
        assert result["netns"] == str(Path("/proc/thread-self/ns/net").readlink())
        assert result["range"] == [LOW, HIGH]
        assert (result["reserved"], result["held"]) == (0, {"tcp": 0, "udp": 0})
        assert result["unshared"] == {"udp": 8}
        assert result["rows"] == [
            {
                "protocol": protocol,
                "source": host,
                "destination": {"address": host, "port": PORT},
                "in_use": number,
                "reusable": 0,
                "capacity": 10,
                "free": 10 - number,
                "utilisation": number / 10,
                "states": {"ESTAB": number},
            }
            for protocol, host, number in (
                ("tcp", "127.0.0.1", 10),
                ("tcp", "::1", 8),
                ("udp", "127.0.0.1", 2),
            )
        ]

    def test_processes_only_where_asked_for(self) -> None:
        rows = found("--processes", "--top", "1")["rows"]
        assert isinstance(rows, list)
        (row,) = rows
        (owner,) = row["processes"]
        assert (owner["process"]["pid"], owner["in_use"]) == (os.getpid(), 10)
        rows = found("--top", "1")["rows"]
        assert isinstance(rows, list)
        assert "processes" not in rows[0]

    def test_groups(self) -> None:
        rows = found("--by", "destination", "--top", "1")["rows"]
        assert isinstance(rows, list)
        (group,) = rows
        fullest = group.pop("fullest")
        assert group == {
            "protocol": "tcp",
            "destination": {"address": "127.0.0.1", "port": PORT},
            "in_use": 10,
            "pairs": 1,
            "capacity": 10,
        }
        assert fullest["utilisation"] == 1.0


class TestWatch:
    def test_ends_when_the_reader_goes(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "connectx", "usage", "--json", "--watch", "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            taken = [json.loads(limits.line_from(process)) for _ in range(3)]
            process.stdout.close()
            assert process.wait(limits.LIMIT) in {0, 1}
            assert process.stderr
            assert process.stderr.read() == ""
        times = [each["taken_at"] for each in taken]
        assert times == sorted(set(times))

    def test_a_reader_that_goes_while_nothing_is_written(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "connectx", "usage", "--json", "--watch", "3600"],
            stdout=subprocess.PIPE,
        ) as process:
            limits.line_from(process)
            assert process.stdout
            process.stdout.close()
            assert process.wait(limits.LIMIT) == 0

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    def test_ctrl_c(self, arguments: list[str]) -> None:
        with on_a_terminal("usage", "--watch", "3600", *arguments) as (process, screen):
            read_until(screen, b"127.0.0.1")
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in read_to_end(screen)
            assert process.wait(20) == 130

    def test_every_time_on_a_clear_screen(self) -> None:
        with on_a_terminal("usage", "--watch", "0.1") as (process, screen):
            for _ in range(3):
                read_until(screen, b"\x1b[2J")
            os.killpg(process.pid, signal.SIGINT)
            read_to_end(screen)
            assert process.wait(20) == 130


class TestTerminal:
    def shown(self, **environment: str) -> str:
        with on_a_terminal("usage", **environment) as (process, screen):
            text = read_to_end(screen).decode()
            assert process.wait(20) == 0
        return text

    def test_what_is_filling_is_coloured(self) -> None:
        text = self.shown()
        assert "\x1b[31m100.0 %" in text
        assert "\x1b[33m 80.0 %" in text or "\x1b[33m80.0 %" in text
        assert "20.0 %\x1b" not in text

    def test_not_with_no_color(self) -> None:
        text = self.shown(NO_COLOR="1")
        assert "100.0 %" in text
        assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", text)

    def test_not_when_piped(self) -> None:
        assert "\x1b" not in connectx("usage").stdout

    def test_a_narrow_one(self) -> None:
        text = COLOURS.sub("", self.shown(COLUMNS="40"))
        assert max(map(len, text.splitlines())) <= 40
        (first, second, *_) = text.splitlines()[-4:]
        # The protocol makes room for the addresses, which stay whole.
        assert first.split()[:4] == ["127.0.0.1", "127.0.0.1:9000", "100.0", "%"]
        assert "protocol" not in text
        assert "10" in second.split()
        assert "80.0 %" in text


class TestOtherNamespaces:
    def test_by_pid(self, capsys: pytest.CaptureFixture[str]) -> None:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        try:
            with experiment_network():
                assert main(["usage", "--json", "--netns", str(child.pid)]) == 0
                taken = json.loads(capsys.readouterr().out)
        finally:
            child.communicate(timeout=limits.LIMIT)
        assert taken["netns"] == str(Path("/proc/thread-self/ns/net").readlink())
        assert len(taken["rows"]) == 3

    @pytest.mark.parametrize(
        "name, says",
        [
            ("no-such-name", "there is no such network namespace"),
            ("4194305", "there is no such network namespace"),
            ("/dev/null", "cannot enter the network namespace, it is not one: /dev/null"),
            ("/tmp", "cannot enter the network namespace, it is not one: /tmp"),  # noqa: S108
        ],
    )
    def test_that_there_are_not(
        self, name: str, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["usage", "--netns", name]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert says in shown.err
        assert name in shown.err
        assert shown.err.startswith("connectx usage: ")

    def test_without_a_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["usage", "--netns", ""]) == 2
        assert "a network namespace has a name, a path, or the pid" in capsys.readouterr().err

    def test_that_may_not_be_entered(self, capsys: pytest.CaptureFixture[str]) -> None:
        with without_capability(CAP_SYS_ADMIN):
            assert main(["usage", "--netns", "/proc/self/ns/net"]) == 1
        shown = capsys.readouterr().err
        assert "Operation not permitted: /proc/self/ns/net" in shown


class TestErrors:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--by", "colour"],
            ["--top", "0"],
            ["--top", "many"],
            ["--protocol", "sctp"],
            ["--source", "localhost"],
            ["--source", ""],
            ["--destination", "example.org:443"],
            ["--destination", "127.0.0.1:70000"],
            ["--port-range", "20000"],
            ["--port-range", "20009-20000"],
            ["--watch", "0"],
            ["--watch", "nan"],
            ["surplus"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["usage", *arguments])

    def test_of_two_families(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["usage", "--source", "::1", "--destination", "127.0.0.1"]) == 2
        assert "are not of the same IP version" in capsys.readouterr().err

    def test_of_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise NetlinkError(2, "No such file or directory")

        monkeypatch.setattr("connectx._diagnosis.snapshot.with_v6only", refuse)
        assert main(["usage"]) == 1
        assert "No such file" in capsys.readouterr().err

    def test_a_full_disk(self) -> None:
        with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
            done = subprocess.run(
                [sys.executable, "-m", "connectx", "usage", "--json"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=limits.COMMAND_LIMIT,
            )
        assert done.returncode == 1
        assert done.stderr.startswith("connectx: cannot write to standard output: ")
