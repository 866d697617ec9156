"""``connectx exporter`` as a user runs it, and a real Prometheus that scrapes it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

import connectx
from connectx.addresses import Endpoint
from connectx.cli import exporter
from connectx.cli.main import main, parser_for
from connectx.observe import serving
from connectx.observe.prometheus import MOST_PAIRS, DialerCollector
from connectx.sandbox.networks import experiment_network
from tests import limits
from tests.api.calls import reset_on_close
from tests.observe.metrics import DASHBOARD, RULES, Values, program, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers

LOW, HIGH = 20000, 20049
PORT = 9000


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "connectx", "exporter", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )


class Exporter:
    """A running exporter, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        line = limits.line_from(process)
        assert line.startswith("connectx exporter: http://"), line
        self.url = line.split()[-1]

    def scrape(self) -> Values:
        return values(get(self.url).decode())

    def end(self, number: int) -> tuple[int, str]:
        """Send it a signal; return its exit status and what it wrote to standard error."""
        self.process.send_signal(number)
        _, complaints = self.process.communicate(timeout=limits.LIMIT)
        return self.process.returncode, complaints


@contextlib.contextmanager
def exporting(*arguments: str) -> Iterator[Exporter]:
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Exporter(process)
        finally:
            process.kill()


def get(url: str) -> bytes:
    # Not urllib.request, which reads proxies from the environment.
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=limits.LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", parts.path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return body


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed, within the socket's timeout."""
    try:
        return limits.receive(sock) == b""
    except TimeoutError:
        return False


@pytest.fixture
def net(network: Network, servers: Servers) -> Network:
    """Fifty ports, and a listener on every address."""
    network.port_range(LOW, HIGH)
    servers.listen("::", PORT)
    return network


@pytest.fixture
def connect(net: Network, closing: contextlib.ExitStack) -> Callable[[int], None]:
    """Returns a function that opens connections, which will be closed without a TIME_WAIT."""
    del net

    def connect(number: int) -> None:
        for _ in range(number):
            sock = closing.enter_context(socket.create_connection(("127.0.0.2", PORT)))
            reset_on_close(sock)

    return connect


class TestServing:
    def test_a_scrape(self, connect: Callable[[int], None]) -> None:
        connect(3)
        with exporting("--listen", "127.0.0.1:0", "--protocol", "tcp", "--top", "5") as exporter:
            found = exporter.scrape()
            assert found["connectx_up"] == 1
            pair = "{destination=127.0.0.2:9000,protocol=tcp,source=127.0.0.1}"
            assert found["connectx_fullest_ports_in_use" + pair] == 3
            assert found["connectx_top_ports_in_use" + pair] == 3
            assert found["connectx_range_ports"] == 50
            connect(1)
            assert exporter.scrape()["connectx_fullest_ports_in_use" + pair] == 4
            assert exporter.end(signal.SIGTERM) == (0, "")

    def test_the_default_address(self, net: Network) -> None:
        del net
        with exporting() as exporter:
            assert exporter.url == "http://127.0.0.1:9764/metrics"
            assert "connectx_up" in exporter.scrape()

    @pytest.mark.parametrize(
        "address, hosts",
        [
            ("[::1]:9764", ["[::1]"]),
            (":9764", ["127.0.0.1", "[::1]"]),
            ("127.0.0.3:9764", ["127.0.0.3"]),
        ],
    )
    def test_other_addresses(self, net: Network, address: str, hosts: list[str]) -> None:
        del net
        with exporting("--listen", address) as exporter:
            assert exporter.url.endswith(":9764/metrics")
            for host in hosts:
                assert b"connectx_up 1.0" in get(f"http://{host}:9764/metrics")
            if address != ":9764":
                with pytest.raises(ConnectionRefusedError):
                    get("http://127.0.0.1:9764/metrics")

    def test_many_scrapes_at_once(self, connect: Callable[[int], None]) -> None:
        connect(2)
        answers: list[float] = []
        with exporting("--listen", "127.0.0.1:0") as exporter:
            threads = [
                threading.Thread(target=lambda: answers.append(exporter.scrape()["connectx_up"]))
                for _ in range(40)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert answers == [1.0] * len(threads)
            assert exporter.end(signal.SIGTERM) == (0, "")

    def test_clients_that_leave_or_stay_silent(self, net: Network) -> None:
        del net
        with exporting("--listen", "127.0.0.1:9764") as exporter:
            silent = socket.create_connection(("127.0.0.1", 9764))
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", 9764)) as sock:
                    sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                    reset_on_close(sock)
            with silent:
                assert exporter.scrape()["connectx_up"] == 1
                assert exporter.end(signal.SIGTERM) == (0, "")

    def test_no_more_clients_than_it_has_places_for(
        self, net: Network, closing: contextlib.ExitStack
    ) -> None:
        net.port_range(LOW, LOW + 999)
        with exporting("--listen", "127.0.0.1:9764") as exporter:
            silent = [
                closing.enter_context(socket.create_connection(("127.0.0.1", 9764)))
                for _ in range(serving._AT_ONCE)
            ]
            with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
                exporter.scrape()
            for sock in silent:
                # It answers an empty request by closing, which frees the place.
                sock.shutdown(socket.SHUT_WR)
                assert limits.receive(sock) == b""
            assert exporter.scrape()["connectx_up"] == 1
            assert exporter.end(signal.SIGTERM) == (0, "")

    def test_a_client_that_dribbles(self, net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each octet comes in time, but the whole request does not."""
        del net
        monkeypatch.setattr(serving, "_PATIENCE", 0.5)
        begun = time.monotonic()
        with (
            application(connectx.Dialer()),
            socket.create_connection(("127.0.0.1", 9765)) as sock,
        ):
            sock.sendall(b"GET /metrics HTTP/1.0\r\nA: ")
            sock.settimeout(0.05)
            with contextlib.suppress(ConnectionError):
                # Until the server closes, which does not wait for the end of the header.
                while not hung_up(sock):
                    assert time.monotonic() - begun < limits.LIMIT, "it still listens"
                    sock.sendall(b"b")
            assert time.monotonic() - begun > 0.4
            monkeypatch.setattr(serving, "_PATIENCE", limits.LIMIT)
            assert b"connectx_dialer" in get("http://127.0.0.1:9765/metrics")

    def test_looks_at_another_namespace_and_listens_in_its_own(
        self, connect: Callable[[int], None]
    ) -> None:
        connect(7)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with (
            experiment_network(),
            exporting("--netns", str(child.pid)) as exporter,
        ):
            found = exporter.scrape()
            assert found["connectx_source_connections{protocol=tcp,source=127.0.0.1}"] == 7
            assert found["connectx_range_ports"] == 50
            # When the child ends, its namespace can no longer be entered.
            child.communicate(timeout=limits.LIMIT)
            for failures in (1, 2):
                assert exporter.scrape() == {
                    "connectx_up": 0,
                    "connectx_snapshot_failures_total": failures,
                }
            status, complaints = exporter.end(signal.SIGTERM)
        assert status == 0
        (line,) = complaints.splitlines()
        assert line.startswith("connectx exporter: cannot count the sockets: ")
        assert "no such network namespace" in line


class TestEnd:
    @pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_by_a_signal(self, net: Network, number: int, status: int) -> None:
        del net
        with exporting("--listen", "127.0.0.1:0") as exporter:
            assert exporter.end(number) == (status, "")

    def test_an_address_that_is_taken(self, net: Network) -> None:
        del net
        with exporting():
            result = run()
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            "connectx exporter: cannot listen on 127.0.0.1:9764: Address already in use\n"
        )

    def test_an_address_that_is_not_local(self, net: Network) -> None:
        del net
        result = run("--listen", "192.0.2.1:9764")
        assert result.returncode == 1
        assert "cannot listen on 192.0.2.1:9764: Cannot assign requested address" in result.stderr

    def test_a_namespace_that_there_is_not(self, net: Network) -> None:
        del net
        result = run("--netns", "no-such-name")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("connectx exporter: ")
        assert "no such network namespace" in result.stderr


class TestArguments:
    @pytest.mark.parametrize(
        "wrong",
        [
            *(["--top", number] for number in ("0", "-1", "1001", "many", "²")),
            *(
                ["--listen", address]
                for address in ("127.0.0.1", "9764", "::1", "[::1]", "here:1", "127.0.0.1:65536")
            ),
            ["--protocol", "sctp"],
            ["--rules", "--dashboard"],
        ],
    )
    def test_wrong_use(self, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["exporter", *wrong])
        assert wrong[0] in capsys.readouterr().err

    def test_bounds_are_the_collectors(self) -> None:
        assert exporter._MOST_PAIRS == MOST_PAIRS

    def test_an_ipv6_address(self) -> None:
        arguments = parser_for(["exporter"]).parse_args(["exporter", "--listen", "[::1]:80"])
        assert arguments.listen == Endpoint("::1", 80)

    @pytest.mark.parametrize("option, text", [("--rules", RULES), ("--dashboard", DASHBOARD)])
    def test_files(self, option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["exporter", option]) == 0
        assert capsys.readouterr().out == text


#: As in /etc/prometheus/prometheus.yml, only that everything is quick.
CONFIGURATION = {
    "global": {
        "scrape_interval": "250ms",
        "scrape_timeout": "250ms",
        "evaluation_interval": "250ms",
    },
    "rule_files": ["rules.yml"],
    "scrape_configs": [
        {
            "job_name": "connectx",
            "static_configs": [{"targets": ["127.0.0.1:9764", "127.0.0.1:9765"]}],
        }
    ],
}


class Prometheus:
    """A Prometheus that scrapes an exporter and an application each quarter of a second."""

    def __init__(
        self, process: subprocess.Popen[bytes], connection: http.client.HTTPConnection
    ) -> None:
        self._process = process
        # One for all requests: each would leave a TIME_WAIT and fill this destination.
        self._connection = connection

    def ask(self, path: str, **query: str) -> Any:
        """The data in an answer of its HTTP API."""
        _, body = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        answer = json.loads(body)
        assert answer["status"] == "success", answer
        return answer["data"]

    def ready(self) -> bool:
        """Whether it is ready."""
        try:
            status, _ = self._get("/-/ready")
        except ConnectionRefusedError:
            return False
        return status == 200

    def value(self, expression: str) -> float | None:
        """The value of an expression that has at most one."""
        result = self.ask("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def firing(self, name: str) -> list[dict[str, Any]]:
        """The firing alerts of a rule."""
        alerts = self.ask("alerts")["alerts"]
        return [
            each
            for each in alerts
            if each["labels"]["alertname"] == name and each["state"] == "firing"
        ]

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            self._connection.request("GET", path)
        except ConnectionRefusedError:
            self._connection.close()
            raise
        response = self._connection.getresponse()
        return response.status, response.read()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Check a condition repeatedly while Prometheus runs."""

        def look() -> bool:
            if condition():
                return True
            # Returns early if Prometheus ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"Prometheus ended with {self._process.wait(timeout=0.1)}")
            return False

        limits.until(look, what)


@contextlib.contextmanager
def prometheus(directory: Path) -> Iterator[Prometheus]:
    found = program("prometheus")
    rules = RULES
    # The same rules with shorter durations.
    for slow, quick in (("for: 1m", "for: 0s"), ("for: 2m", "for: 0s"), ("[15m]", "[10s]")):
        assert slow in rules
        rules = rules.replace(slow, quick)
    (directory / "rules.yml").write_text(rules)
    (directory / "prometheus.yml").write_text(json.dumps(CONFIGURATION))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                found,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                "--web.listen-address=127.0.0.1:9090",
            ],
            stdout=log,
            stderr=log,
            # By default it starts threads for every processor.
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        connection = http.client.HTTPConnection("127.0.0.1", 9090, timeout=limits.LIMIT)
        try:
            with contextlib.closing(connection):
                watching = Prometheus(process, connection)
                watching.wait(watching.ready, "Prometheus")
                yield watching
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def application(dialer: connectx.Dialer) -> Iterator[None]:
    """Serve the metrics of a dialer in a thread, as an application does."""
    registry = CollectorRegistry()
    registry.register(DialerCollector({"api": dialer}))
    end = os.eventfd(0)
    try:
        with serving.Server(Endpoint("127.0.0.1", 9765), make_wsgi_app(registry)) as server:
            thread = threading.Thread(target=server.serve, args=[end])
            thread.start()
            try:
                yield
            finally:
                os.eventfd_write(end, 1)
                limits.join(thread)
    finally:
        os.close(end)


def test_prometheus_fires_as_ports_run_out(
    net: Network, connect: Callable[[int], None], closing: contextlib.ExitStack, tmp_path: Path
) -> None:
    """In a network of fifty ports: from none in use to the last one, and back."""
    del net
    dialer = connectx.Dialer(["127.0.0.1"])
    labels = {"protocol": "tcp", "source": "127.0.0.1", "instance": "127.0.0.1:9764"}
    with exporting(), application(dialer), prometheus(tmp_path) as watching:
        connect(10)
        failures = 'sum(connectx_dialer_failures_total{dialer="api"})'
        watching.wait(lambda: watching.value(failures) == 0, "a scrape of the application")
        fullest = "max(connectx_fullest_ports_in_use)"
        watching.wait(lambda: watching.value(fullest) == 10, "a scrape of the exporter")
        assert watching.ask("alerts")["alerts"] == []

        connect(26)
        watching.wait(lambda: watching.firing("ConnectxPortsFilling"), "filling")
        (alert,) = watching.firing("ConnectxPortsFilling")
        assert labels.items() <= alert["labels"].items()
        assert (
            "72% of its ports are in use toward 127.0.0.2:9000."
            in (alert["annotations"]["description"])
        )
        assert watching.firing("ConnectxPortsFull") == []

        with contextlib.ExitStack() as last:
            for _ in range(14):
                sock = last.enter_context(dialer.create_connection(("127.0.0.2", PORT)))
                reset_on_close(sock)
            with pytest.raises(connectx.PortsExhausted):
                dialer.create_connection(("127.0.0.2", PORT))
            watching.wait(lambda: watching.firing("ConnectxPortsFull"), "full")
            (alert,) = watching.firing("ConnectxPortsFull")
            assert labels.items() <= alert["labels"].items()
            assert alert["labels"]["severity"] == "critical"
            assert (
                "100% of its ports are in use toward 127.0.0.2:9000."
                in (alert["annotations"]["description"])
            )
            watching.wait(lambda: watching.firing("ConnectxConnectFailuresRising"), "failures")
            (alert,) = watching.firing("ConnectxConnectFailuresRising")
            assert (alert["labels"]["dialer"], alert["labels"]["errno"]) == ("api", "EADDRNOTAVAIL")
            # Every query of the dashboard is valid, and most have data.
            queries = [
                target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
                for panel in json.loads(DASHBOARD)["panels"]
                for target in panel["targets"]
            ]
            silent = [each for each in queries if not watching.ask("query", query=each)["result"]]
            assert all("conntrack" in each or "deriv" in each for each in silent), silent

        closing.close()
        watching.wait(lambda: not watching.firing("ConnectxPortsFull"), "the end of it")
        assert watching.firing("ConnectxCannotLook") == []
