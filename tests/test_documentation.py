"""Every example in the documentation and in the docstrings is run, each page in its own network.

Python blocks run in order, all of a page in one namespace, with the servers of `world`. In console
blocks each command is checked: make's targets exist, connectx takes the options, pip's extras are
the distribution's.
"""

import doctest
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

import connectx
from connectx._connect.strategies import STRATEGIES
from connectx.cli import main as cli
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = sorted(Path(str(connectx.__file__)).parent.rglob("*.py"))
FENCE = re.compile(r"^\s*```(.+)$", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z]+):.*## ", re.MULTILINE)
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

ADDRESSES = ("192.0.2.7", "192.0.2.8", "2001:db8::7")
SERVERS = ("198.51.100.9", "198.51.100.10", "2001:db8::9")


@pytest.fixture
def world(
    network: Network, servers: Servers, trio_threads: None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The machine that the examples run on, as docs/getting-started.md describes it."""
    del trio_threads
    for address in (*ADDRESSES, *SERVERS):
        network.add_address(address)
    servers.echo(
        *(servers.listen(host, 443) for host in SERVERS),
        *(servers.receive(host, 53) for host in SERVERS),
    )
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
    if {"--help", "--version"} & set(arguments):
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of(page: Path, world: dict[str, Any]) -> None:
    parsers = (
        PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS),
        CodeBlockParser("console", check_commands),
    )
    evaluate(Document.parse(str(page), *parsers), world)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_examples_in_docstrings_of(module: Path, request: pytest.FixtureRequest) -> None:
    parser = DocTestParser(optionflags=DOCTEST_FLAGS)
    document = PythonDocStringDocument.parse(str(module), parser)
    if list(document.examples()):
        evaluate(document, request.getfixturevalue("world"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_goes_unchecked(page: Path) -> None:
    languages = set(FENCE.findall(page.read_text()))
    assert languages <= {"python", "console", "{eval-rst}", "{toctree}"}


def test_no_page_is_without_examples() -> None:
    # Pages that only explain are listed, so that one whose examples went missing shows.
    without = {page.name for page in PAGES if not FENCE.search(page.read_text())}
    assert without == {"CHANGELOG.md", "how-it-works.md", "kernels.md"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_section(name: str) -> None:
    assert f"\n## `{name}`\n" in (ROOT / "docs" / "strategies.md").read_text()


@pytest.mark.parametrize(
    "name", [name for name in connectx.__all__ if hasattr(connectx.errors, name)]
)
def test_every_error_has_a_section_and_a_place_in_the_api(name: str) -> None:
    docs = ROOT / "docs"
    assert f"autoexception:: connectx.{name}\n" in (docs / "api.md").read_text()
    assert f"`{name}`\n" in (docs / "errors.md").read_text() or name == "ConnectxError"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
