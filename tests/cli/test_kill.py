"""``connectx kill``: its output and its refusals; tests/observe has what it closes."""

import contextlib
import errno
import json
import os
import socket

import pytest

from connectx.cli.main import main
from connectx.linux import sock_destroy, uapi
from connectx.linux.netlink import NetlinkError, NetlinkSocket
from connectx.linux.socket_dump import Filter, records
from connectx.observe.kill import STATES, require
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import CAP_NET_ADMIN, close_first, without_capability
from tests.lab.commands import connectx

PORT = 9000


@pytest.fixture(autouse=True)
def able(network: Network) -> None:
    del network
    try:
        require("tcp")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"kernel: {error}")


@pytest.fixture
def time_waits(servers: Servers) -> int:
    listener = servers.listen("127.0.0.1", PORT)
    for _ in range(3):
        client = socket.create_connection(("127.0.0.1", PORT))
        close_first(client, limits.accept(listener)[0], uapi.TCP_TIME_WAIT)
    return 3


def in_time_wait() -> int:
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        return len(records(netlink, Filter(uapi.IPPROTO_TCP, 1 << uapi.TCP_TIME_WAIT)))


def test_lists_and_warns_and_changes_nothing(time_waits: int) -> None:
    done = connectx("kill")
    assert done.returncode == 0
    assert "3  TIME-WAIT   127.0.0.1 to 127.0.0.1:9000" in done.stdout
    assert "Nothing was closed. --yes would close 3 sockets." in done.stdout
    assert "RFC 9293, RFC 1337" in done.stderr
    assert in_time_wait() == time_waits


def test_closes(time_waits: int) -> None:
    done = connectx("kill", "--yes", "--limit", "2")
    assert (done.returncode, "2 sockets closed, 0 already gone." in done.stdout) == (0, True)
    assert "RFC 1337" in done.stderr
    assert in_time_wait() == time_waits - 2
    assert "1 socket closed" in connectx("kill", "--yes").stdout
    done = connectx("kill", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "No TCP socket in TIME-WAIT matches.\n"


@pytest.mark.usefixtures("time_waits")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kill", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in found if key != "sockets"} == {
        "schema": "kill/1",
        "protocol": "tcp",
        "states": ["TIME-WAIT"],
        "dry_run": True,
        "lacking": "",
        "selected": 3,
        "closed": 0,
        "gone": 0,
        "refused": {},
    }
    assert found["sockets"][0].keys() == {"state", "source", "destination"}
    assert {each["source"]["address"] for each in found["sockets"]} == {"127.0.0.1"}
    assert all(
        each["destination"] == {"address": "127.0.0.1", "port": 9000} for each in found["sockets"]
    )
    assert main(["kill", "--json", "--yes"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dry_run"], found["selected"], found["closed"]) == (False, 3, 3)


@pytest.mark.usefixtures("time_waits")
def test_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["kill"]) == 0
    shown = capsys.readouterr()
    assert max(map(len, shown.err.splitlines())) <= 40
    # What is to be copied stays whole.
    assert any("to 127.0.0.1:9000" in line for line in shown.out.splitlines())


@pytest.mark.usefixtures("time_waits")
@pytest.mark.parametrize(
    "spelled", ["TIME-WAIT", "TIME_WAIT", "time-wait", "time_wait", "timewait", "TCP_TIME_WAIT"]
)
def test_states_are_spelled_as_people_do(spelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kill", "--json", "--state", spelled]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["states"], found["selected"]) == (["TIME-WAIT"], 3)


@pytest.mark.parametrize(
    "spelled, state",
    [
        ("estab", "ESTAB"),
        ("ESTABLISHED", "ESTAB"),
        ("TCP_ESTABLISHED", "ESTAB"),
        ("FIN_WAIT1", "FIN-WAIT-1"),
        ("fin-wait-2", "FIN-WAIT-2"),
        ("SYN_RECV", "SYN-RECV"),
        ("SYN-RECEIVED", "SYN-RECV"),
        ("close_wait", "CLOSE-WAIT"),
        ("listen", "LISTEN"),
    ],
)
def test_other_states_too(spelled: str, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kill", "--json", "--source", "127.0.0.1", "--state", spelled]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == [state]


def test_states_of_udp(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--protocol", "udp", "--source", "127.0.0.1", "--state", "unconnected"]
    assert main(["kill", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == ["UNCONN"]


def test_listeners_only_by_name(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    listener = servers.listen("127.0.0.1", PORT)
    every = [word for state in STATES["tcp"][:-1] for word in ("--state", state)]
    assert main(["kill", *every, "--source", "127.0.0.1", "--yes"]) == 0
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert main(["kill", "--state", "LISTEN", "--source", "127.0.0.1", "--yes"]) == 0
    assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert "nothing listens on its port." in " ".join(capsys.readouterr().err.split())


def test_warns_of_what_it_does_to_others(
    servers: Servers, closing: contextlib.ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.listen("127.0.0.1", PORT)
    closing.enter_context(socket.create_connection(("127.0.0.1", PORT)))
    closing.enter_context(socket.socket(type=socket.SOCK_DGRAM)).connect(("127.0.0.1", PORT))
    for protocol, text in (
        ("tcp", "its peer gets a reset"),
        ("udp", "Closing a UDP socket disconnects it"),
    ):
        command = ["kill", "--protocol", protocol, "--state", "ESTAB"]
        assert main([*command, "--destination", f":{PORT}"]) == 0
        shown = " ".join(capsys.readouterr().err.split())
        assert text in shown
        assert "RFC" not in shown


@pytest.mark.usefixtures("time_waits")
class TestWithoutTheCapability:
    def test_it_is_said_before_anything_is_done(self, capsys: pytest.CaptureFixture[str]) -> None:
        with without_capability(CAP_NET_ADMIN):
            assert main(["kill", "--yes"]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "needs CAP_NET_ADMIN" in shown.err
        assert in_time_wait() == 3

    def test_a_dry_run_works_and_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        with without_capability(CAP_NET_ADMIN):
            assert main(["kill"]) == 0
            assert "needs CAP_NET_ADMIN" in capsys.readouterr().out
            assert main(["kill", "--json"]) == 0
            assert "needs CAP_NET_ADMIN" in json.loads(capsys.readouterr().out)["lacking"]

    def test_a_kernel_without_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(*_: object) -> None:
            raise NetlinkError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(sock_destroy, "destroy", refuse)
        assert main(["kill", "--yes"]) == 1
        assert "built without INET_DIAG_DESTROY" in capsys.readouterr().err


@pytest.mark.usefixtures("time_waits")
def test_some_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise NetlinkError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("connectx.observe.kill.destroy", refuse)
    assert main(["kill", "--yes"]) == 1
    assert "3 not closed: Device or resource busy." in capsys.readouterr().out
    assert main(["kill", "--yes", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["refused"] == {"EBUSY": 3}


class TestWrongUsage:
    @pytest.mark.parametrize(
        "arguments, says",
        [
            (["--state", "ESTAB"], "by source or destination only"),
            (["--state", "LISTEN", "--source-port-range", "1-2"], "by source or destination only"),
            (["--protocol", "udp"], "UDP has no TIME-WAIT"),
            (["--protocol", "udp", "--state", "LISTEN", "--source", "::1"], "a state of UDP"),
            (["--source", "::1", "--destination", "127.0.0.1"], "are not of the same IP version"),
        ],
    )
    def test_of_arguments_together(
        self, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["kill", *arguments, "--yes"]) == 2
        assert says in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--source", ""],
            ["--source", "localhost"],
            ["--destination", "a:b"],
            ["--limit", "0"],
            ["--limit", "-1"],
            ["--state", "waiting"],
            ["--protocol", "sctp"],
            ["--source-port-range", "2-1"],
        ],
    )
    def test_of_one_argument(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["kill", *arguments])

    def test_of_a_namespace(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["kill", "--netns", "no-such-name", "--yes"]) == 1
        assert "there is no such network namespace" in capsys.readouterr().err
