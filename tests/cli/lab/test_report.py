"""``connectx lab report``: what it refuses, and how it ends; tests/lab has what it writes."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from connectx.cli.main import main
from connectx.lab import trials
from tests import limits
from tests.lab.commands import on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    from pathlib import Path


class TestRefusal:
    def test_of_a_range_that_shows_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["lab", "report", "--ports", "40000-40009"]) == 1
        assert "too small for a report" in capsys.readouterr().err

    def test_of_a_place_that_cannot_be_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for place in (tmp_path / "nowhere" / "page.html", tmp_path):
            assert main(["lab", "report", "--output", str(place)]) == 1
            assert f"connectx lab report: cannot write {place}: " in capsys.readouterr().err
            assert list(tmp_path.iterdir()) == []

    def test_leaves_no_empty_page_when_interrupted(self, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        page.write_text("the former one")
        with on_a_terminal("lab", "report", "--output", str(page)) as (process, screen):
            read_until(screen, b"opening")
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in read_to_end(screen)
            assert process.wait(limits.LIMIT) == 130
        assert [path.read_text() for path in tmp_path.iterdir()] == ["the former one"]
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)

    def test_of_too_few_descriptors_before_anything_is_measured(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(trials, "DESCRIPTORS", 1 << 40)
        assert main(["lab", "report"]) == 1
        assert "descriptors here" in capsys.readouterr().err
