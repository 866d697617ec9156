"""Metrics against what was opened, in private networks, and what promtool says of them."""

import contextlib
import datetime as dt
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import as_file
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

import connectx
from connectx._diagnosis.census import tells_binds_apart
from connectx.addresses import Endpoint, PortRange
from connectx.linux import proc_net
from connectx.observe import Row, Snapshot, prometheus
from connectx.observe.prometheus import (
    DIALER_METRICS,
    MOST_PAIRS,
    MOST_SOURCES,
    SOCKET_METRICS,
    DialerCollector,
    SocketCollector,
)
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import reset_on_close
from tests.observe.helpers import leave_time_wait
from tests.observe.metrics import DASHBOARD, FILES, RULES, Values, promtool, values

LOW, HIGH = 20000, 20099
PORT = 9000
HERE = Path(__file__).parent

Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(network: Network, servers: Servers, closing: contextlib.ExitStack) -> Connect:
    """Opens connections to a listener on every address; closed without a TIME_WAIT."""
    network.port_range(LOW, HIGH)
    servers.listen("::", PORT)

    def connect(
        destination: str, source: str = "", kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        sock = closing.enter_context(socket.socket(type=kind))
        if source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, 0))
        sock.connect((destination, PORT))
        if kind == socket.SOCK_STREAM:
            reset_on_close(sock)
        return sock

    return connect


def text_of(*collectors: Collector) -> str:
    """What a scrape of them gives."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def scrape(*collectors: Collector) -> Values:
    return values(text_of(*collectors))


class TestSockets:
    def test_nothing_is_in_use(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        network.port_range(LOW, HIGH)
        network.reserved_ports(f"{LOW}-{LOW + 4}")
        times = iter([2.0, 2.25])
        clocks = SimpleNamespace(monotonic=time.monotonic, perf_counter=lambda: next(times))
        monkeypatch.setattr(prometheus, "time", clocks)
        found = scrape(SocketCollector())
        assert found["connectx_up"] == 1
        assert found["connectx_snapshot_failures_total"] == 0
        assert found["connectx_snapshot_duration_seconds"] == 0.25
        assert found["connectx_range_ports"] == 100
        assert found["connectx_range_reserved_ports"] == 5
        assert found["connectx_sources{protocol=tcp}"] == 0
        assert found["connectx_range_held_ports{protocol=udp}"] == 0
        assert not any("source=" in name for name in found)

    def test_a_source_is_as_full_as_its_fullest_destination(self, connect: Connect) -> None:
        for number, destination in ((40, "127.0.0.1"), (50, "127.0.0.2"), (30, "127.0.0.3")):
            for _ in range(number):
                connect(destination, "127.0.0.1" if destination == "127.0.0.3" else "")
        connect("127.0.0.1", kind=socket.SOCK_DGRAM)
        found = scrape(SocketCollector())
        source = "{protocol=tcp,source=127.0.0.1}"
        # More connections than there are ports, and yet half of them are free.
        assert found["connectx_source_connections" + source] == 120
        assert found["connectx_source_capacity_ports" + source] == 100
        assert found["connectx_source_destinations" + source] == 3
        assert found["connectx_source_utilisation_ratio" + source] == 0.5
        fullest = "{destination=127.0.0.2:9000,protocol=tcp,source=127.0.0.1}"
        assert found["connectx_fullest_ports_in_use" + fullest] == 50
        assert found["connectx_fullest_capacity_ports" + fullest] == 100
        assert found["connectx_fullest_utilisation_ratio" + fullest] == 0.5
        assert found["connectx_source_connections{protocol=udp,source=127.0.0.1}"] == 1
        assert found["connectx_connections{protocol=tcp,state=ESTAB}"] == 120
        # Of the fullest only, and only where it is asked for of others.
        assert sum("destination=127.0.0" in name for name in found) == 8
        assert not any(name.startswith("connectx_top") for name in found)

    def test_the_fullest_pairs_if_asked_for(self, connect: Connect) -> None:
        for number, destination in ((4, "127.0.0.2"), (5, "127.0.0.3"), (3, "127.0.0.4")):
            for _ in range(number):
                connect(destination, "127.0.0.1")
        found = scrape(SocketCollector(top=2))
        top = {name: value for name, value in found.items() if name.startswith("connectx_top")}
        pair = "{{destination={}:9000,protocol=tcp,source=127.0.0.1}}".format
        assert top == {
            "connectx_top_ports_in_use" + pair("127.0.0.3"): 5,
            "connectx_top_utilisation_ratio" + pair("127.0.0.3"): 0.05,
            "connectx_top_ports_in_use" + pair("127.0.0.2"): 4,
            "connectx_top_utilisation_ratio" + pair("127.0.0.2"): 0.04,
        }

    def test_time_waits_that_a_connect_may_take_over(
        self, network: Network, servers: Servers
    ) -> None:
        if not Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
            pytest.skip("kernel: before 6.14 the delay is a second")
        network.port_range(LOW, LOW + 9)
        # As long as it can be: else one of these connections may take over a TIME_WAIT.
        network.sysctl("net.ipv4.tcp_tw_reuse_delay", 60_000)
        listener = servers.listen("127.0.0.1", PORT)
        for _ in range(5):
            leave_time_wait(listener, ("127.0.0.1", PORT))
        network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
        fullest = "{destination=127.0.0.1:9000,protocol=tcp,source=127.0.0.1}"

        def look() -> Values:
            found = scrape(SocketCollector(top=1))
            return found if found["connectx_fullest_reusable_ports" + fullest] == 5 else {}

        found = limits.until(look, "the last TIME_WAIT is a millisecond old")
        assert found["connectx_fullest_ports_in_use" + fullest] == 5
        assert found["connectx_fullest_utilisation_ratio" + fullest] == 0
        assert found["connectx_top_utilisation_ratio" + fullest] == 0
        assert found["connectx_source_utilisation_ratio{protocol=tcp,source=127.0.0.1}"] == 0

    def test_ports_for_sockets_that_do_not_share(self, connect: Connect) -> None:
        for number in range(1, 31):
            connect(f"127.0.1.{number}", kind=socket.SOCK_DGRAM)
        found = scrape(SocketCollector())
        assert found["connectx_range_unshared_free_ports{protocol=udp}"] == 70
        assert found["connectx_source_utilisation_ratio{protocol=udp,source=127.0.0.1}"] == 0.01

    def test_one_protocol(self, connect: Connect) -> None:
        connect("127.0.0.1")
        connect("127.0.0.1", kind=socket.SOCK_DGRAM)
        found = scrape(SocketCollector(protocols=["udp"]))
        assert "connectx_source_connections{protocol=udp,source=127.0.0.1}" in found
        assert not any("protocol=tcp" in name for name in found)

    def test_tables(self, network: Network, servers: Servers) -> None:
        network.sysctl("net.ipv4.tcp_max_tw_buckets", 77)
        leave_time_wait(servers.listen("127.0.0.1", PORT), ("127.0.0.1", PORT))
        found = scrape(SocketCollector())
        assert found["connectx_time_wait_sockets"] == 1
        assert found["connectx_time_wait_sockets_limit"] == 77
        assert found["connectx_connections{protocol=tcp,state=TIME-WAIT}"] == 1
        if proc_net.conntrack() is None:
            pytest.skip("kernel: has no conntrack")
        assert found["connectx_conntrack_entries"] >= 0
        assert found["connectx_conntrack_entries_limit"] > 0

    def test_without_conntrack(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        del network
        monkeypatch.setattr(proc_net, "_CONNTRACK", "/proc/sys/net/no_such_")
        found = scrape(SocketCollector())
        assert found["connectx_up"] == 1
        assert not any("conntrack" in name for name in found)

    def test_another_namespace(self, network: Network, connect: Connect) -> None:
        network.sysctl("net.ipv4.tcp_max_tw_buckets", 78)
        connect("127.0.0.1")
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with experiment_network():
            found = scrape(SocketCollector(netns=str(child.pid)))
        child.communicate(timeout=limits.LIMIT)
        assert found["connectx_source_connections{protocol=tcp,source=127.0.0.1}"] == 1
        assert found["connectx_time_wait_sockets_limit"] == 78

    @pytest.mark.parametrize("wrong", [{"protocols": ["sctp"]}, {"top": -1}, {"top": 1001}])
    def test_wrong_use(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"^(protocols are|top is)"):
            SocketCollector(**wrong)


class TestLocked:
    """Ports that sockets lock which were bound before they connected."""

    LOCKED = "connectx_range_locked_ports{protocol=tcp}"

    def test_are_told_from_others(self, network: Network, connect: Connect) -> None:
        if not tells_binds_apart():
            pytest.skip("kernel: has no way to tell")
        for _ in range(3):
            connect("127.0.0.1")
        # By an explicit bind, whose port no connect() has any more; two may have the same.
        bound = [connect("127.0.0.1", f"127.0.0.{number}") for number in range(2, 8)]
        found = scrape(SocketCollector())
        ports = {sock.getsockname()[1] for sock in bound}
        assert found[self.LOCKED] == len(ports)
        network.reserved_ports(str(min(ports)))
        assert scrape(SocketCollector())[self.LOCKED] == len(ports) - 1

    def test_are_tried_once_a_minute(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect("127.0.0.1")
        counts = iter([4, 5])
        monkeypatch.setattr(prometheus, "count_locked", lambda: next(counts))
        collector = SocketCollector()
        assert [scrape(collector)[self.LOCKED] for _ in range(3)] == [4, 4, 4]
        monkeypatch.setattr(prometheus, "_TRY_EVERY", 0.0)
        monkeypatch.setattr(collector, "_try_again", 0.0)
        assert scrape(collector)[self.LOCKED] == 5

    def test_that_cannot_be_tried_leave_the_rest(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect("127.0.0.1")
        said: list[str] = []

        def fail() -> int:
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr(prometheus, "count_locked", fail)
        monkeypatch.setattr(prometheus, "_TRY_EVERY", 0.0)
        collector = SocketCollector(report=said.append)
        for _ in range(2):
            found = scrape(collector)
            assert found["connectx_up"] == 1
            assert self.LOCKED not in found
        assert said == ["cannot try which ports are locked: [Errno 101] Network is unreachable"]
        monkeypatch.setattr(prometheus, "count_locked", lambda: None)
        assert self.LOCKED not in scrape(collector)

    def test_of_udp_alone_none_is_tried(
        self, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del network
        monkeypatch.setattr(prometheus, "count_locked", lambda: pytest.fail("it tries"))
        assert scrape(SocketCollector(protocols=["udp"]))["connectx_up"] == 1


def snapshot_of(rows: Iterator[Row]) -> Snapshot:
    return Snapshot(
        dt.datetime.now(dt.UTC), "net:[1]", PortRange(LOW, HIGH), 0, {"tcp": 0}, tuple(rows)
    )


class TestCardinality:
    """How many series there are, whatever a machine is connected to."""

    @pytest.fixture
    def show(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Values]:
        del network

        def show(rows: Iterator[Row], **arguments: Any) -> Values:
            taken = snapshot_of(rows)
            monkeypatch.setattr(prometheus, "snapshot", lambda **_: taken)
            return scrape(SocketCollector(protocols=["tcp"], **arguments))

        return show

    @staticmethod
    def destinations(number: int) -> Iterator[Row]:
        for each in range(number):
            destination = Endpoint(f"198.51.{each // 250}.{each % 250}", 443)
            yield Row("tcp", "192.0.2.7", destination, 1, 100, {"ESTAB": 1}, {})

    def test_of_ten_thousand_destinations(self, show: Callable[..., Values]) -> None:
        found = show(self.destinations(10_000))
        assert found["connectx_source_destinations{protocol=tcp,source=192.0.2.7}"] == 10_000
        assert len(found) <= 25

    def test_of_as_many_pairs_as_can_be_asked_for(self, show: Callable[..., Values]) -> None:
        found = show(self.destinations(10_000), top=MOST_PAIRS)
        assert 2 * MOST_PAIRS < len(found) <= 2 * MOST_PAIRS + 25

    def test_of_ten_thousand_sources(self, show: Callable[..., Values]) -> None:
        destination = Endpoint("2001:db8::", 443)
        found = show(
            Row("tcp", f"2001:db8::{each:x}", destination, number, capacity, {"ESTAB": number}, {})
            for each, (number, capacity) in enumerate([*[(2, 100)] * 9_999, (1, 10)])
        )
        assert found["connectx_sources{protocol=tcp}"] == 10_000
        # The fullest is among them, though it has the fewest connections and comes last.
        ratio = "connectx_source_utilisation_ratio{protocol=tcp,source=2001:db8::270f}"
        assert found[ratio] == 0.1
        assert 8 * MOST_SOURCES < len(found) <= 8 * MOST_SOURCES + 25

    def test_no_label_is_a_process_or_a_local_port(self) -> None:
        metrics = SOCKET_METRICS | DIALER_METRICS
        labels = {label for _, labels in metrics.values() for label in labels}
        assert labels == {"destination", "dialer", "errno", "protocol", "source", "state"}


class TestFailure:
    def test_is_a_metric_and_is_said_once(self, connect: Connect) -> None:
        connect("127.0.0.1")
        said: list[str] = []
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        collector = SocketCollector(netns=str(child.pid), report=said.append)
        assert scrape(collector)["connectx_up"] == 1
        child.communicate(timeout=limits.LIMIT)
        for failures in (1, 2, 3):
            assert scrape(collector) == {
                "connectx_up": 0,
                "connectx_snapshot_failures_total": failures,
            }
        (reason,) = said
        assert "cannot count the sockets" in reason
        assert "no such network namespace" in reason
        with pytest.raises(FileNotFoundError, match="no such network namespace"):
            collector.look()

    def test_another_reason_and_the_end_of_it_are_said_too(
        self, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del network
        said: list[str] = []
        collector = SocketCollector(report=said.append)
        errors: list[Exception | None] = [OSError("one"), OSError("one"), ValueError("two"), None]

        def snapshot(**_: object) -> Snapshot:
            if (error := errors.pop(0)) is not None:
                raise error
            return snapshot_of(iter(()))

        monkeypatch.setattr(prometheus, "snapshot", snapshot)
        ups = [scrape(collector)["connectx_up"] for _ in range(4)]
        assert ups == [0, 0, 0, 1]
        assert said == [
            "cannot count the sockets: one",
            "cannot count the sockets: two",
            "the sockets can be counted again",
        ]

    def test_goes_to_the_log_by_default(
        self, network: Network, caplog: pytest.LogCaptureFixture
    ) -> None:
        del network
        assert scrape(SocketCollector(netns="no-such-name"))["connectx_up"] == 0
        assert "no such network namespace" in caplog.text

    def test_of_another_kind_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def snapshot(**_: object) -> Snapshot:
            raise ZeroDivisionError

        monkeypatch.setattr(prometheus, "snapshot", snapshot)
        with pytest.raises(ZeroDivisionError):
            SocketCollector().collect()


class TestConcurrency:
    def test_scrapes_at_the_same_time_share_a_count(
        self, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del network
        counting, go_on = threading.Event(), threading.Event()
        counts: list[int] = []

        def snapshot(**_: object) -> Snapshot:
            counts.append(len(counts))
            counting.set()
            assert go_on.wait(30)
            return snapshot_of(iter(()))

        monkeypatch.setattr(prometheus, "snapshot", snapshot)
        collector = SocketCollector()
        lock = CountingLock()
        monkeypatch.setattr(collector, "_lock", lock)
        answers: list[float] = []
        threads = [
            threading.Thread(target=lambda: answers.append(scrape(collector)["connectx_up"]))
            for _ in range(8)
        ]
        threads[0].start()
        assert counting.wait(limits.LIMIT)
        for thread in threads[1:]:
            thread.start()
        lock.wait_for(len(threads))
        go_on.set()
        for thread in threads:
            limits.join(thread)
        assert answers == [1.0] * len(threads)
        assert counts == [0]
        # Who comes later counts anew.
        assert scrape(collector)["connectx_up"] == 1
        assert counts == [0, 1]


class CountingLock:
    """A lock that knows how many have asked for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = threading.Semaphore(0)

    def wait_for(self, number: int) -> None:
        for _ in range(number):
            assert self._asked.acquire(timeout=limits.LIMIT)

    def __enter__(self) -> None:
        self._asked.release()
        assert self._lock.acquire(timeout=limits.LIMIT)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class TestDialers:
    def test_of_a_dialer_that_finds_no_port(
        self, network: Network, servers: Servers, closing: contextlib.ExitStack
    ) -> None:
        network.port_range(LOW, LOW + 3)
        servers.listen("127.0.0.1", PORT)
        dialers = {"api": connectx.Dialer()}
        collector = DialerCollector(dialers)
        before = scrape(collector)
        assert before["connectx_dialer_attempts_total{dialer=api}"] == 0
        for number in ("EADDRNOTAVAIL", "EADDRINUSE", "EAGAIN"):
            # There before the first one, or Prometheus would see no increase.
            assert before[f"connectx_dialer_failures_total{{dialer=api,errno={number}}}"] == 0
        for _ in range(4):
            sock = closing.enter_context(dialers["api"].create_connection(("127.0.0.1", PORT)))
            reset_on_close(sock)
        with pytest.raises(connectx.PortsExhausted):
            dialers["api"].create_connection(("127.0.0.1", PORT))
        with pytest.raises(ConnectionRefusedError):
            dialers["api"].create_connection(("127.0.0.1", PORT + 1))
        stats = dialers["api"].stats()
        dialers["late"] = connectx.Dialer()
        found = scrape(collector)
        assert found["connectx_dialer_attempts_total{dialer=api}"] == stats.attempts >= 6
        assert found["connectx_dialer_opened_total{dialer=api}"] == 4
        assert found["connectx_dialer_retries_total{dialer=api}"] == stats.retries
        failures = "connectx_dialer_failures_total{{dialer=api,errno={}}}".format
        assert found[failures("EADDRNOTAVAIL")] == stats.failures["EADDRNOTAVAIL"] >= 1
        assert found[failures("ECONNREFUSED")] == 1
        assert found[failures("EAGAIN")] == 0
        seconds = found["connectx_dialer_search_seconds_total{dialer=api}"]
        assert seconds == stats.search_seconds > 0
        assert found["connectx_dialer_waits_total{dialer=late}"] == 0

    def test_of_a_call_that_waits(self, network: Network, servers: Servers) -> None:
        network.port_range(LOW, LOW)
        servers.listen("127.0.0.1", PORT)
        found: list[Values] = []
        dialer = connectx.Dialer(
            ["127.0.0.1"], wait=0.01, on_wait=lambda _: found.append(scrape(collector))
        )
        collector = DialerCollector({"calm": dialer})
        with dialer.create_connection(("127.0.0.1", PORT)) as sock:
            reset_on_close(sock)
            with pytest.raises(connectx.PortsExhausted):
                dialer.create_connection(("127.0.0.1", PORT))
        (during,) = found
        assert during["connectx_dialer_waiting{dialer=calm}"] == 1
        after = scrape(collector)
        assert after["connectx_dialer_waiting{dialer=calm}"] == 0
        assert after["connectx_dialer_waits_total{dialer=calm}"] == 1


class TestConventions:
    def test_promtool_finds_nothing_to_say(self, connect: Connect) -> None:
        connect("127.0.0.1")
        dialers = DialerCollector({"api": connectx.Dialer()})
        text = text_of(SocketCollector(top=1), dialers)
        assert promtool("check", "metrics", text=text).stderr == ""
        loaded = proc_net.conntrack() is not None
        expected = {
            name
            for name in SOCKET_METRICS | DIALER_METRICS
            if loaded or not name.startswith("connectx_conntrack")
        }
        assert {name.partition("{")[0] for name in values(text)} == expected

    def test_registering_looks_at_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prometheus, "snapshot", lambda **_: pytest.fail("it looks"))
        registry = CollectorRegistry(auto_describe=True)
        registry.register(SocketCollector())
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(SocketCollector())

    def test_observe_itself_does_without_the_client(self) -> None:
        code = "import sys, connectx.observe; print('prometheus_client' in sys.modules)"
        command = [sys.executable, "-c", code]
        said = subprocess.check_output(command, text=True, timeout=limits.COMMAND_LIMIT)
        assert said == "False\n"


class TestRules:
    def test_are_valid(self) -> None:
        with as_file(FILES.joinpath("rules.yml")) as path:
            assert "8 rules found" in promtool("check", "rules", path).stdout

    def test_fire_when_they_should(self, tmp_path: Path) -> None:
        for name, text in (
            ("rules.yml", RULES),
            ("rules_test.yml", (HERE / "rules_test.yml").read_text()),
        ):
            (tmp_path / name).write_text(text)
        promtool("test", "rules", tmp_path / "rules_test.yml")

    def test_each_has_a_test(self) -> None:
        names = set(re.findall(r"alert: (\w+)", RULES))
        assert names == set(re.findall(r"alertname: (\w+)", (HERE / "rules_test.yml").read_text()))

    def test_name_metrics_that_there_are(self) -> None:
        named = set(re.findall(r"\bconnectx_\w+", re.sub("(?m)^ *#.*", "", RULES)))
        assert named
        assert named <= SOCKET_METRICS.keys() | DIALER_METRICS.keys()


class TestDashboard:
    @pytest.fixture
    def panels(self) -> list[dict[str, Any]]:
        panels: list[dict[str, Any]] = json.loads(DASHBOARD)["panels"]
        return panels

    def test_asks_the_data_source_that_was_chosen(self, panels: list[dict[str, Any]]) -> None:
        variables = {each["name"]: each for each in json.loads(DASHBOARD)["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource"
        assert variables["datasource"]["query"] == "prometheus"
        sources = [panel["datasource"] for panel in panels]
        sources += [target["datasource"] for panel in panels for target in panel["targets"]]
        assert {each["uid"] for each in sources} == {"${datasource}"}

    def test_panels_have_a_place_of_their_own(self, panels: list[dict[str, Any]]) -> None:
        taken = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(taken) == len(set(taken))
        assert max(x for x, _ in taken) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(panel["title"] and panel["description"] for panel in panels)

    def test_its_queries_are_valid(self, panels: list[dict[str, Any]], tmp_path: Path) -> None:
        rules = [
            {"record": f"a:{number}:{target['refId']}", "expr": expression_of(target)}
            for number, panel in enumerate(panels)
            for target in panel["targets"]
        ]
        path = tmp_path / "queries.yml"
        path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        assert f"{len(rules)} rules found" in promtool("check", "rules", path).stdout

    def test_shows_every_metric_there_is_and_no_other(self, panels: list[dict[str, Any]]) -> None:
        queries = " ".join(target["expr"] for panel in panels for target in panel["targets"])
        named = set(re.findall(r"\bconnectx_\w+", queries))
        metrics = SOCKET_METRICS.keys() | DIALER_METRICS.keys()
        assert named <= metrics
        # The rest says the same as another one, or how many there are of what is shown.
        assert metrics - named == {
            "connectx_fullest_capacity_ports",
            "connectx_fullest_ports_in_use",
            "connectx_sources",
            "connectx_top_ports_in_use",
        }
        assert "predict_linear(" in queries


def expression_of(target: dict[str, Any]) -> str:
    """A query with Grafana's variables filled in."""
    expression: str = target["expr"]
    filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in filled
    return filled
