"""Every command on a host that has only Python: those that need more name the extra."""

import contextlib
import json
import socket

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import reset_on_close
from tests.cli.bare import without_extras
from tests.lab.commands import connectx

LOW, HIGH = 20000, 20009
PORT = 9000


@pytest.fixture
def full(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """Ten connections, which are as many as there can be."""
    network.port_range(LOW, HIGH)
    servers.listen("127.0.0.1", PORT)
    for _ in range(HIGH - LOW + 1):
        reset_on_close(closing.enter_context(socket.create_connection(("127.0.0.1", PORT))))


@pytest.mark.usefixtures("full")
class TestOnAMachine:
    @pytest.mark.parametrize(
        "arguments, status, shown",
        [
            (["usage"], 0, "tcp       127.0.0.1  127.0.0.1:9000      10  10  100.0 %  ESTAB 10"),
            (["usage", "--by", "source"], 0, "127.0.0.1 to 127.0.0.1:9000"),
            (["doctor", "--errno", "99", "--destination", "127.0.0.1:9000"], 1, "exhaustion"),
            (["kill", "--state", "ESTAB", "--destination", ":9000"], 0, "127.0.0.1:9000"),
        ],
    )
    def test_text(self, arguments: list[str], status: int, shown: str) -> None:
        result = without_extras(*arguments)
        assert result.returncode == status, result.stderr
        assert shown in result.stdout
        assert "\x1b" not in result.stdout

    @pytest.mark.parametrize(
        "arguments, status",
        [
            (["usage"], 0),
            (["doctor", "--errno", "99", "--destination", "127.0.0.1:9000"], 1),
            (["kill", "--state", "ESTAB", "--destination", ":9000"], 0),
        ],
    )
    def test_json(self, arguments: list[str], status: int) -> None:
        result = without_extras(*arguments, "--json")
        assert result.returncode == status, result.stderr
        assert isinstance(json.loads(result.stdout), dict)

    def test_it_is_the_same_text_as_with_them(self) -> None:
        # The first line has the time.
        _, *lines = connectx("usage").stdout.splitlines()
        _, *bare = without_extras("usage").stdout.splitlines()
        assert bare == lines


class TestExperiments:
    @pytest.mark.parametrize("json_", [[], ["--json"]], ids=["text", "json"])
    @pytest.mark.parametrize(
        "arguments, status",
        [
            (["demo", "--ports", "40000-40063", "--protocol", "udp"], 0),
            (["lab", "latency", "--ports", "40000-40063"], 0),
            (["lab", "simulate", "--ports", "40000-40007"], 0),
            (["lab", "techniques", "--protocol", "udplite", "--family", "6"], 0),
        ],
        ids=["demo", "latency", "simulate", "techniques"],
    )
    def test_run(self, arguments: list[str], status: int, json_: list[str]) -> None:
        result = without_extras(*arguments, *json_)
        assert result.returncode == status, result.stderr
        assert result.stdout
        if json_:
            assert isinstance(json.loads(result.stdout), dict)


class TestWhatNeedsMore:
    def test_names_the_extra_before_it_begins(self) -> None:
        for arguments, extra in (("lab report", "lab"), ("exporter", "tools")):
            result = without_extras(*arguments.split())
            assert (result.returncode, result.stdout) == (2, "")
            assert f"pip install 'connectx[{extra}]'" in result.stderr

    @pytest.mark.parametrize(
        "command", ["top", "exporter", "lab report", "lab latency", "exporter --rules"]
    )
    def test_help_and_files_need_nothing(self, command: str) -> None:
        help_ = [] if "--rules" in command else ["--help"]
        result = without_extras(*command.split(), *help_)
        assert (result.returncode, result.stderr) == (0, "")
