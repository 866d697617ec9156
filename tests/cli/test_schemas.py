"""The JSON of every command fits its schema, and the schema describes every field of it."""

from __future__ import annotations

import argparse
import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from connectx._diagnosis.doctor_rules import find
from connectx.cli import main as cli
from connectx.cli.doctor import _plain
from connectx.cli.main import main
from connectx.cli.schemas import VERSIONS
from tests._diagnosis.made_up import CASES, HEALTHY
from tests.api.calls import reset_on_close
from tests.cli.schemas import check, objects, schema, strict
from tests.lab.commands import connectx
from tests.observe.helpers import leave_time_wait

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator

    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers

PORT = 9000

#: The commands that print JSON, by the name of their schema, with arguments. `connectx lab report`
#: writes a file: tests/lab/test_report.py.
COMMANDS = {
    "demo": "demo --ports 40000-40063 --protocol udp",
    "doctor": "doctor --seconds 0",
    "kill": "kill",
    "lab-latency": "lab latency --ports 40000-40063",
    "lab-simulate": "lab simulate",
    "lab-techniques": "lab techniques --protocol udp --family 4",
    "usage": "usage",
}


def run(name: str, *arguments: str) -> dict[str, Any]:
    done = connectx(*COMMANDS[name].split(), *arguments, "--json")
    assert done.returncode in {0, 1}, done.stderr
    return check(name, done.stdout)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


class TestSchemas:
    def test_are_of_the_commands_that_print_json(self) -> None:
        printing = {
            parser.prog.removeprefix("connectx ").replace(" ", "-")
            for parser in parsers(cli.parser_for([]))
            if "--json-schema" in parser.format_help()
        }
        assert printing == set(VERSIONS) == {*COMMANDS, "lab-report"}
        directory = Path(cli.__file__).parent / "json_schemas"
        assert {path.stem for path in directory.iterdir()} == set(VERSIONS)

    @pytest.mark.parametrize("name", VERSIONS)
    def test_are_schemas_with_a_version(self, name: str) -> None:
        found = schema(name)
        jsonschema.Draft202012Validator.check_schema(found)
        assert found["properties"]["schema"]["const"] == f"{name}/{VERSIONS[name]}"
        option = "--data" if name == "lab-report" else "--json"
        assert found["title"] == f"connectx {name.replace('lab-', 'lab ')} {option}"

    @pytest.mark.parametrize("name", VERSIONS)
    def test_describe_every_field(self, name: str) -> None:
        found = schema(name)
        for each in objects(found):
            assert set(each.get("required", ())) <= set(each["properties"])
            for field, described in each["properties"].items():
                text = described.get("description")
                if text is None:
                    text = found["$defs"][described["$ref"].rpartition("/")[2]]["description"]
                assert re.fullmatch(r"[^.]*(\..*[^.])?", text), (field, text)

    @pytest.mark.parametrize("name", VERSIONS)
    def test_are_printed(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        command = name.replace("lab-", "lab ").split()
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--json-schema"])
        assert json.loads(capsys.readouterr().out) == schema(name)

    def test_are_in_the_documentation(self) -> None:
        page = (Path(__file__).parent.parent.parent / "docs" / "json.md").read_text()
        drawn = re.findall(r"## `(.*)`\n\n(?:.+\n\n)?:::{json-fields} (.*)\n", page)
        assert {name for _, name in drawn} == set(VERSIONS)
        for command, name in drawn:
            assert schema(name)["title"].rpartition(" ")[0] == command

    def test_forbid_no_new_field(self) -> None:
        """A program that checks an output must not fail when a field is added."""
        for name in VERSIONS:
            assert all("additionalProperties" not in each for each in objects(schema(name)))

    def test_of_the_results_in_the_documentation(self) -> None:
        results = Path(__file__).parent.parent.parent / "docs" / "results" / "lab.json"
        check("lab-report", results.read_text())


@pytest.fixture
def machine(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """A full destination, IPv6, a TIME_WAIT, a listener among the ports, and UDP."""
    network.port_range(20000, 20009)
    leave_time_wait(servers.listen("127.0.0.2", PORT + 1), ("127.0.0.2", PORT + 1))
    servers.listen("::", PORT)
    servers.listen("127.0.0.1", 20009)
    for host in [*["127.0.0.1"] * 9, "::1"]:
        reset_on_close(closing.enter_context(socket.create_connection((host, PORT))))
    closing.enter_context(socket.socket(type=socket.SOCK_DGRAM)).connect(("127.0.0.1", PORT))


@pytest.mark.usefixtures("machine")
class TestOnAMachine:
    @pytest.mark.parametrize("by", ["pair", "source", "destination", "process", "state"])
    @pytest.mark.parametrize("processes", [[], ["--processes"]])
    def test_usage(self, by: str, processes: list[str]) -> None:
        found = run("usage", "--by", by, *processes)
        assert found["by"] == by
        assert found["rows"]

    def test_usage_has_addresses_and_counts_as_fields(self) -> None:
        (row, *_) = run("usage", "--processes")["rows"]
        assert (row["source"], row["in_use"], row["free"]) == ("127.0.0.1", 9, 0)
        assert row["destination"] == {"address": "127.0.0.1", "port": PORT}
        assert row["processes"][0]["process"]["pid"] > 0
        (row, *_) = run("usage", "--by", "destination")["rows"]
        assert row["destination"] == {"address": "127.0.0.1", "port": PORT}
        (row, *_) = run("usage", "--by", "process")["rows"]
        assert row["process"]["command"]

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--destination", f"127.0.0.1:{PORT}"],
            ["--errno", "EADDRNOTAVAIL", "--destination", f"127.0.0.1:{PORT}"],
            ["--errno", "99", "--source", "192.0.2.7"],
            ["--errno", "98", "--source", ":20009", "--destination", f"127.0.0.1:{PORT}"],
            ["--port-range", "1024-65535", "--destination", f"[::1]:{PORT}"],
            ["--protocol", "udp", "--errno", "11"],
        ],
        ids=" ".join,
    )
    def test_doctor(self, arguments: list[str]) -> None:
        found = run("doctor", *arguments)
        assert bool(found["calls"]) == bool(arguments)

    def test_doctor_has_addresses_and_counts_as_fields(self) -> None:
        found = run("doctor", "--errno", "99", "--destination", f"127.0.0.1:{PORT}")
        (call, *_) = found["calls"]
        assert call["destination"] == {"address": "127.0.0.1", "port": PORT}
        assert call["errno"] == "EADDRNOTAVAIL"
        assert (call["census"]["connected"], call["census"]["free"]) == (9, 0)
        (finding, *_) = found["findings"]
        assert finding["fields"]["source"] == "127.0.0.1"
        assert finding["fields"]["census"] == call["census"]

    @pytest.mark.parametrize("yes", [[], ["--yes"]])
    @pytest.mark.parametrize("state", ["TIME-WAIT", "LISTEN", "ESTAB"])
    def test_kill(self, state: str, yes: list[str]) -> None:
        found = run("kill", "--state", state, "--destination", f":{PORT}", *yes)
        if state == "ESTAB":
            ends = {each["destination"]["address"] for each in found["sockets"]}
            assert ends >= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("differing", [differing for differing, _ in CASES])
def test_findings_of_every_rule(differing: dict[str, Any]) -> None:
    found = strict("doctor")
    fields = {"$ref": "#/$defs/fields", "$defs": found["$defs"]}
    for finding in find(HEALTHY._replace(**differing)):
        for each in (finding, *finding.also):
            jsonschema.Draft202012Validator(fields).validate(_plain(each.fields))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("demo", []),
        ("lab-latency", []),
        ("lab-latency", ["--churn", "50", "--operations", "20", "--family", "6"]),
        ("lab-latency", ["--connections", "1", "--way", "shifting-window:8"]),
        ("lab-simulate", []),
        ("lab-simulate", ["--search", "window:2", "--bound", "40001", "--reserved", "40002"]),
        ("lab-simulate", ["--ports", "40000-40999", "--destinations", "2"]),
        ("lab-techniques", []),
    ],
)
def test_experiments(name: str, arguments: list[str]) -> None:
    run(name, *arguments)
