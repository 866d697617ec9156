"""``connectx lab simulate``: what it shows for the simulations that tests/lab is about."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from connectx.addresses import PortRange
from connectx.cli.lab.strip import Strips
from connectx.cli.main import main
from connectx.lab import simulate
from connectx.lab.simulate import Settings
from tests import limits
from tests.lab.commands import on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx.cli.page import Piece

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[1-7]m")
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["lab", "simulate", *arguments]) == 0
    result = capsys.readouterr()
    assert result.err == ""
    assert max(map(len, result.out.splitlines())) <= 80
    return result.out


def lines(width: int = 80, **values: Any) -> tuple[list[str], list[str]]:
    """Return the strips of a simulation as text: the explanation, and a line per connection."""
    simulation = simulate.run(Settings(**values, paths=True))
    strips = Strips(simulation.settings, width)
    assert strips.fit
    explanation = [text(line) for line in [*strips.legend(), strips.head()]]
    found = []
    for connection in simulation.connections:
        found.append(text(strips.line(connection)))
        strips.note(connection)
    assert max(map(len, [*explanation, *found])) <= width
    return explanation, found


def text(line: Sequence[Piece]) -> str:
    return "".join(segment.text for segment in line).rstrip()


class TestStrips:
    def test_of_eight_ports(self) -> None:
        (legend, head), found = lines(ports=PortRange(40000, 40007), seed=1)
        assert legend == ". free   x in use   1x looked at first, in use   [2] then taken"
        assert [head, *found] == [
            "   40000 40001 40002 40003 40004 40005 40006 40007  probes  port",
            " 1   .     .     .     .    [1]    .     .     .         1 40004",
            " 2  [1]    .     .     .     x     .     .     .         1 40000",
            " 3   x     .     .     .     1x    .    [2]    .         2 40006",
            " 4   3x    .    [4]    .     1x    .     2x    .         4 40002",
            " 5   4x    .     1x   [5]    2x    .     3x    .         5 40003",
            " 6   4x    .     1x    5x    2x   [6]    3x    .         6 40005",
            " 7   4x    .     1x    5x    2x    6x    3x   [7]        7 40007",
            " 8   1x   [5]    2x    x     3x    x     4x    x         5 40001",
        ]

    def test_of_many_ports_are_narrow(self) -> None:
        _, found = lines(ports=PortRange(40000, 40039), seed=1)
        assert all(len(line) == 3 + 40 + 13 for line in found)
        assert [set(line[3:43]) for line in found[:1]] == [{".", "*"}]
        assert set(found[-1][3:43]) == {"x", ">", "*"}
        for number, line in enumerate(found):
            strip = line[3:43]
            assert strip.count("*") == 1
            assert strip.count(".") == 39 - number
            assert strip.count(">") + 1 == int(line[43:50])
            assert strip[int(line[-5:]) - 40000] == "*"

    @pytest.mark.parametrize("size", [8, 40])
    def test_of_a_port_that_is_reserved_or_bound(self, size: int) -> None:
        explanation, found = lines(
            ports=PortRange(40000, 40000 + size - 1),
            reserved=frozenset({40001}),
            bound=frozenset({40003}),
        )
        assert "reserved" in text_of(explanation)
        assert "bound by others" in text_of(explanation)
        cell = 6 if size == 8 else 1
        columns = [[line[3 + cell * at : 3 + cell * (at + 1)] for line in found] for at in (1, 3)]
        assert {cell.strip() for cell in columns[0]} == {"-"}
        marks = {re.sub(r"\d", "", cell.strip()) for cell in columns[1]}
        assert marks == {"b"} if size == 8 else {"b", "!"}

    def test_of_several_destinations(self) -> None:
        explanation, found = lines(ports=PortRange(40000, 40001), destinations=2)
        assert "o in use toward another destination only" in text_of(explanation)
        assert found == [
            " 1 to 1  [1]    .         1 40000",
            " 2 to 2  [1]    .         1 40000",
            " 3 to 1   1x   [2]        2 40001",
            " 4 to 2   1x   [2]        2 40001",
        ]

    def test_of_a_port_in_use_elsewhere(self) -> None:
        _, found = lines(ports=PortRange(40000, 40000), destinations=2, connections=2)
        assert found == [" 1 to 1  [1]        1 40000", " 2 to 2  [1]        1 40000"]
        _, found = lines(ports=PortRange(40000, 40007), destinations=2, connections=2, seed=1)
        assert "o" in found[1]

    def test_of_windows_are_blank_outside(self) -> None:
        explanation, found = lines(
            ports=PortRange(40000, 40007), search=simulate.parse_search("window:3"), seed=1
        )
        assert "blank outside the window" in text_of(explanation)
        for line in found:
            cells = [line.ljust(80)[3 + 6 * at : 9 + 6 * at] for at in range(8)]
            assert len([cell for cell in cells if cell.strip()]) == 3

    def test_of_a_failure(self) -> None:
        _, found = lines(ports=PortRange(40000, 40001), connections=3, seed=1)
        assert found[-1] == " 3   1x    2x        2  none"

    def test_of_ranges_that_do_not_fit(self) -> None:
        sizes = [size for size in range(1, 200) if Strips(at(size), 80).fit]
        assert sizes == list(range(1, max(sizes) + 1))
        assert 60 <= max(sizes) <= 70
        assert not Strips(at(8), 12).fit


def at(size: int) -> Settings:
    return Settings(ports=PortRange(40000, 40000 + size - 1))


def text_of(explanation: list[str]) -> str:
    return "\n".join(explanation)


class TestOutput:
    def test_is_the_picture_and_the_totals(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = shown(capsys, "--seed", "1")
        assert "8 connections to 1 destination, 8 ports (40000-40007): connect() by itself" in out
        assert " 8   1x   [5]    2x    x     3x    x     4x    x         5 40001" in out
        assert re.search(r"^odd ports +4 +0 +23 +5\.8 +7", out, re.MULTILINE)
        assert re.search(r"^all +8 +0 +31 +3\.9 +7", out, re.MULTILINE)

    def test_of_one_is_in_the_singular(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = shown(capsys, "--ports", "40000-40000", "--search", "window:1")
        assert out.startswith(
            "1 connection to 1 destination, 1 port (40000-40000): random windows of 1 port\n"
        )

    def test_can_be_repeated(self, capsys: pytest.CaptureFixture[str]) -> None:
        first = shown(capsys, "--ports", "40000-40019")
        (seed,) = re.findall(r"^seed (\d+)", first, re.MULTILINE)
        assert shown(capsys, "--ports", "40000-40019", "--seed", seed) == first
        assert shown(capsys, "--ports", "40000-40019") != first

    def test_of_a_large_range_is_the_totals(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = shown(capsys, "--ports", "40000-40999", "--animate")
        assert "totals only" in out
        assert re.search(r"^0% to 50% +500 +0 ", out, re.MULTILINE)
        assert len(out.splitlines()) < 20

    def test_without_a_terminal_is_not_animated(self, capsys: pytest.CaptureFixture[str]) -> None:
        still = shown(capsys, "--seed", "1")
        assert shown(capsys, "--seed", "1", "--animate", "--delay", "60") == still

    def test_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = "--ports 40000-40063 --search option --before-6.8 --seed 7"
        found = json.loads(shown(capsys, "--json", *arguments.split()))
        settings = Settings(
            ports=PortRange(40000, 40063),
            search=simulate.Search("option"),
            step_of_one=False,
            seed=7,
            paths=True,
        )
        assert found.pop("schema") == "lab-simulate/1"
        assert found == simulate.as_json(simulate.run(settings))

    def test_as_json_has_paths_of_small_ranges(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = json.loads(shown(capsys, "--json", "--ports", "40000-40064"))
        assert "path" not in found["connections"][0]
        assert found["totals"]["all"]["connections"] == 65


class TestRefusal:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ("--ports 1024-65535", "would take minutes"),
            (
                "--ports 1024-65535 --destinations 100 --search option",
                "more than 500,000 connections",
            ),
            ("--connections 0", "'0' is not a whole number of at least 1"),
            ("--search window:9", "larger than 40000-40007"),
            ("--search fast", "'fast' is neither plain"),
            ("--bound 3", "the bound port 3 is not in the range"),
            ("--reserved 40000-40007", "every port"),
            ("--reserved x", "not a port: 'x'"),
            ("--seed x", "--seed"),
            ("--delay 1", "--delay needs --animate"),
            ("--animate --delay nan", "'nan' is not a number of seconds from 0"),
            ("--animate --json", "not allowed with"),
        ],
    )
    def test_is_wrong_usage(
        self, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["lab", "simulate", *arguments.split()])
        result = capsys.readouterr()
        assert result.out == ""
        assert message in result.err

    def test_spares_the_kernels_default_range(self) -> None:
        assert Settings(ports=PortRange(32768, 60999)).expected_probes < simulate.MOST_PROBES


class TestAnimation:
    def test_leaves_the_picture(self) -> None:
        arguments = ("lab", "simulate", "--seed", "1", "--animate", "--delay", "0")
        with on_a_terminal(*arguments, COLUMNS="80") as (process, screen):
            seen = read_to_end(screen)
            assert process.wait(limits.LIMIT) == 0
        assert seen.index(HIDE_CURSOR) < seen.index(SHOW_CURSOR)
        assert COLOUR.search(seen)
        plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen)
        # A line for each connection, and more for each of its probes.
        assert len(re.findall(rb"\[5\]", plain)) >= 3
        assert b" 8   1x   [5]    2x    x     3x    x     4x    x         5 40001" in plain

    def test_can_be_interrupted(self) -> None:
        arguments = ("lab", "simulate", "--animate", "--delay", "60")
        with on_a_terminal(*arguments) as (process, screen):
            # The first probe is drawn, and stays for 60 seconds.
            read_until(screen, b"[1]")
            os.killpg(process.pid, signal.SIGINT)
            seen = read_to_end(screen)
            assert process.wait(limits.LIMIT) == 130
        assert SHOW_CURSOR in seen
        assert b"Traceback" not in seen
