"""Text and tables on terminals and pipes of any width."""

from __future__ import annotations

import io

import pytest

from connectx.cli.page import Column, Page, Piece, Table, columns_of


def text(table: Table, width: int) -> list[str]:
    return ["".join(piece.text for piece in line).rstrip() for line in table.lines(width)]


def pairs() -> Table:
    table = Table(
        [
            Column("protocol", leave_out=2),
            Column("destination"),
            Column("of", right=True, leave_out=1),
            Column("states", folds=True),
        ]
    )
    table.add("tcp", "[2001:db8::7]:443", "28,232", "ESTAB 20,000, TIME-WAIT 8,000")
    table.add("udp", "192.0.2.7:53", "7", "ESTAB 7")
    return table


class TestTable:
    def test_a_wide_one(self) -> None:
        assert text(pairs(), 100) == [
            "protocol  destination            of  states",
            "tcp       [2001:db8::7]:443  28,232  ESTAB 20,000, TIME-WAIT 8,000",
            "udp       192.0.2.7:53            7  ESTAB 7",
        ]

    def test_first_words_are_folded(self) -> None:
        assert text(pairs(), 54) == [
            "protocol destination           of states",
            "tcp      [2001:db8::7]:443 28,232 ESTAB 20,000,",
            "                                  TIME-WAIT 8,000",
            "udp      192.0.2.7:53           7 ESTAB 7",
        ]

    @pytest.mark.parametrize(
        "width, left", [(42, ["destination", "of", "states"]), (30, ["destination", "states"])]
    )
    def test_then_columns_are_left_out(self, width: int, left: list[str]) -> None:
        lines = text(pairs(), width)
        assert lines[0].split() == left
        assert max(map(len, lines)) <= width

    @pytest.mark.parametrize("width", [1, 20, 30, 40, 60])
    def test_what_neither_folds_nor_may_go_stays_whole(self, width: int) -> None:
        lines = text(pairs(), width)
        assert sum("[2001:db8::7]:443" in line for line in lines) == 1

    def test_sections_rules_and_missing_cells(self) -> None:
        table = Table([Column(), Column("n", right=True)], "a title", rule=True, gap=1)
        table.add_section()
        table.add("one", "1")
        table.add_section()
        table.add_section()
        table.add("none")
        table.add_section()
        assert text(table, 80) == ["a title", "     n", "──────", "one  1", "", "none"]

    def test_cells_of_several_lines(self) -> None:
        table = Table([Column("of\ntwo"), Column("one")], gap=1)
        table.add((Piece("a", "dim"), Piece("b")), "c\nd")
        assert text(table, 80) == ["of", "two one", "a   c", "b   d"]
        assert Piece("a", "dim") in table.lines(80)[2]

    def test_wide_characters_stay_aligned(self) -> None:
        table = Table([Column("process"), Column("n")])
        table.add("漢字", "1")
        table.add("e\u0301", "2")
        assert {columns_of(line[:-1]) for line in text(table, 80)[1:]} == {9}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestPage:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)

    def test_styles_are_for_terminals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for stream, environment, shown in (
            (Terminal(), {}, "\x1b[1;31mfull\x1b[0m\n"),
            (Terminal(), {"NO_COLOR": "1"}, "\x1b[1mfull\x1b[0m\n"),
            (Terminal(), {"TERM": "dumb"}, "full\n"),
            (io.StringIO(), {}, "full\n"),
        ):
            with monkeypatch.context() as patched:
                for name, value in environment.items():
                    patched.setenv(name, value)
                Page(stream=stream).line(Piece("full", "bold red"))
            assert stream.getvalue() == shown

    def test_a_name_cannot_command_the_terminal(self) -> None:
        stream = Terminal()
        Page(stream=stream).line("\x1b[2Jcrawler\r\x9b")
        assert stream.getvalue() == "?[2Jcrawler??\n"

    def test_the_width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Page(stream=Terminal()).width == 40
        assert Page(widest=30, stream=Terminal()).width == 30
        assert Page(piped=1000, stream=Terminal()).width == 40
        assert Page(piped=1000, stream=io.StringIO()).width == 1000
        monkeypatch.setenv("COLUMNS", "3")
        assert Page(stream=Terminal()).width == 24

    def test_words_stay_whole_on_the_smallest_screen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "24")
        stream = io.StringIO()
        said = "From 2001:db8:1234:5678::9 to [2001:db8:1234:5678::7]:443, 32768-60999, CLOSE-WAIT"
        Page(stream=stream).paragraph(said, "  - ")
        assert stream.getvalue().split() == ["-", *said.split()]

    def test_an_animation_leaves_the_cursor_and_no_line(self) -> None:
        stream = Terminal()
        with Page(stream=stream).animation() as show:
            show([Piece("10 %", "dim")])
            show([])
        assert stream.getvalue() == "\x1b[?25l\r\x1b[K\x1b[2m10 %\x1b[0m\r\x1b[K\x1b[?25h"
        plain = io.StringIO()
        with Page(stream=plain).animation() as show:
            show([Piece("10 %")])
        assert plain.getvalue() == ""
