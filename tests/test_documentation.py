"""Every example in the documentation and in the docstrings is run, each page in its own network.

Python blocks run in order, all of a page in one namespace, with the servers of `world`. In console
blocks each command is checked: make's targets exist, connectx takes the options, pip's extras are
the distribution's.
"""

import contextlib
import doctest
import importlib
import importlib.metadata
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from sybil import Example
from sybil.document import Document, PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

import connectx.aio
import connectx.observe
from connectx._connect.strategies import STRATEGIES
from connectx._diagnosis import causes
from connectx._dial.capacity import Capacity, SourceCapacity
from connectx._dial.policy import Stats
from connectx.cli import main as cli
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.integrations import websocket_server
from tests.integrations.adapters.redis import RedisAdapter
from tests.integrations.frame import Server
from tests.integrations.servers import start

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = sorted(Path(str(connectx.__file__)).parent.rglob("*.py"))
FENCE = re.compile(r"^\s*```([^\s`]+)", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z-]+):.*## ", re.MULTILINE)
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

ERRORS = [name for name in connectx.__all__ if hasattr(connectx.errors, name)]

ADDRESSES = ("192.0.2.7", "192.0.2.8", "2001:db8::7")
SERVERS = ("198.51.100.9", "198.51.100.10", "2001:db8::9")


@pytest.fixture
def world(
    network: Network,
    servers: Servers,
    closing: contextlib.ExitStack,
    trio_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """The machine that the examples run on, as docs/getting-started.md describes it."""
    del trio_threads
    for address in (*ADDRESSES, *SERVERS):
        network.add_address(address)
    servers.echo(
        *(servers.listen(host, 443) for host in SERVERS),
        *(servers.receive(host, 53) for host in SERVERS),
    )
    for host in SERVERS:
        # Web servers, which answer with the address that a request comes from.
        start(closing, host, 80)
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **keywords: Any) -> Any:
        return resolve(SERVERS[0] if host == "example.org" else host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return {"network": network}


def evaluate(document: Document, world: dict[str, Any]) -> None:
    document.namespace.update(world)
    try:
        for example in document.examples():
            example.evaluate()
    finally:
        document.namespace.clear()


def check_commands(example: Example) -> None:
    lines = example.parsed.splitlines()
    assert all(line.startswith("$ ") for line in lines), "a console block holds commands only"
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        if program == "make":
            assert arguments[0] in MAKE_TARGET.findall((ROOT / "Makefile").read_text()), line
        elif program == "connectx":
            check_command_line(arguments)
        elif (program, arguments[0]) == ("pip", "install"):
            check_requirement(arguments[1])
        else:
            pytest.fail(f"no check for {line!r}")


def check_command_line(arguments: list[str]) -> None:
    # What a subcommand does is for its own tests; here it only has to be typed right.
    if {"--help", "--json-schema", "--version"} & set(arguments):
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(arguments)
    else:
        cli.parser_for(arguments).parse_args(arguments)


def check_requirement(requirement: str) -> None:
    name, _, extra = requirement.rstrip("]").partition("[")
    metadata = importlib.metadata.metadata("connectx")
    # The project itself, from its checkout or by its name.
    assert name in {".", metadata["Name"]}
    assert not extra or extra in metadata.get_all("Provides-Extra", [])


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def fences(path: Path) -> set[str]:
    return set(FENCE.findall(path.read_text()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_of(path: Path, world: dict[str, Any], closing: contextlib.ExitStack) -> None:
    if path.stem == "integrations":
        start(closing, SERVERS[0], 8765, websocket_server.answer)
        RedisAdapter().begin(closing, Server(SERVERS[0], 6379))
    parsers = (
        PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS),
        CodeBlockParser("console", check_commands),
    )
    evaluate(Document.parse(str(path), *parsers), world)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_examples_in_docstrings_of(module: Path, request: pytest.FixtureRequest) -> None:
    parser = DocTestParser(optionflags=DOCTEST_FLAGS)
    document = PythonDocStringDocument.parse(str(module), parser)
    if list(document.examples()):
        evaluate(document, request.getfixturevalue("world"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_block_goes_unchecked(path: Path) -> None:
    # Mermaid is checked by test_house.py, and what literalinclude shows by test_outputs.py.
    assert fences(path) <= {"python", "console", "text", "mermaid"} | {
        f"{{{directive}}}"
        for directive in ("eval-rst", "figure", "image", "include", "literalinclude", "toctree")
    }


def test_no_page_is_without_examples() -> None:
    # Pages that only explain are listed, so that one whose examples went missing shows.
    without = {path.name for path in PAGES if not {"python", "console"} & fences(path)}
    assert without == {
        "404.md",
        "CHANGELOG.md",
        "api.md",
        "changes.md",
        "how-it-works.md",
        "kernels.md",
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_section(name: str) -> None:
    assert f"\n## `{name}`\n" in page("strategies")


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_a_section(name: str) -> None:
    assert f"`{name}`\n" in page("errors") or name == "ConnectxError"


def test_the_reference_has_every_public_name() -> None:
    documented = re.findall(r"^\.\. auto\w+:: (.+)$", page("api"), re.MULTILINE)
    for module in (connectx, connectx.aio, connectx.observe):
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in documented
    for path in documented:
        module_name, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module_name), name), path


@pytest.mark.parametrize(
    "heading,fields",
    [
        ("capacity", {*Capacity._fields, *SourceCapacity._fields, "free"}),
        ("stats", set(Stats._fields)),
    ],
)
def test_the_reference_has_every_field(heading: str, fields: set[str]) -> None:
    _, _, table = page("api").partition(f"| `{heading}()` |")
    rows, _, _ = table.partition("\n\n")
    named = {
        name for row in rows.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert named == fields


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_no_private_module(path: Path) -> None:
    assert re.findall(r"connectx\.(?:\w+\.)*(?:_\w+|core)", path.read_text()) == []


class TestCausesOfEaddrnotavail:
    """One number of causes, wherever it is mentioned."""

    EXHAUSTION = frozenset(
        each.name for each in causes.OF_EADDRNOTAVAIL if each in causes.OF_EXHAUSTION
    )
    OTHERS = frozenset(each.name for each in causes.OF_EADDRNOTAVAIL) - EXHAUSTION
    NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

    def test_each_has_a_row(self) -> None:
        _, _, section = page("troubleshooting").partition("\n## Cannot assign requested address")
        section, _, _ = section.partition("\n## ")
        tables = [
            frozenset(re.findall(r"^\| (\w[^|]*) \|", table, re.MULTILINE)) - {"cause"}
            for table in section.split("\n\n")
            if table.startswith("|")
        ]
        assert tables == [self.EXHAUSTION, self.OTHERS]

    def test_the_number_is_the_same_everywhere(self) -> None:
        total = self.NUMBERS[len(self.EXHAUSTION) + len(self.OTHERS)]
        said = [
            number
            for path in PAGES
            for number in re.findall(r"(\w+) causes\b", path.read_text())
            if number in self.NUMBERS
        ]
        assert said
        assert set(said) == {total}
        assert f"{self.NUMBERS[len(self.EXHAUSTION)].title()} of them are exhaustion" in " ".join(
            page("troubleshooting").split()
        )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
