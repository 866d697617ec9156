"""What importing an integration does, and what it says where the library is missing or too old."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from connectx.integrations import _dialers
from tests import limits
from tests.integrations import frame, oldest

ROOT = Path(__file__).parent.parent.parent


def python(code: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    return done.stdout


def needs(name: str) -> set[str]:
    """What a library cannot do without; it may go by another name among packages."""
    (package,) = set(importlib.metadata.packages_distributions()[name])
    return {
        match.group()
        for each in importlib.metadata.requires(package) or ()
        if (match := re.match(r"\w+", each))
    }


def test_connectx_imports_none() -> None:
    code = (
        "import sys, connectx.aio, connectx.dialer; print('connectx.integrations' in sys.modules)"
    )
    assert python(code) == "False\n"


@pytest.mark.parametrize("module", frame.modules())
def test_one_imports_no_other_library(module: str) -> None:
    libraries = {row.adapter.plain.partition(".")[0] for row in frame.rows()}
    libraries -= sys.stdlib_module_names
    own = {each.plain.partition(".")[0] for each in frame.adapters_of(module)}
    found = python(f"import sys, connectx.integrations.{module}; print(*sys.modules)").split()
    needed = {need for name in own - sys.stdlib_module_names for need in needs(name)}
    # What the library imports by itself is its own business, and what it cannot do without.
    names = ", ".join(own | needed & libraries)
    alone = python(f"import sys, {names}; print(*sys.modules)").split()
    assert libraries & set(found) - set(alone) <= own | needed


@pytest.mark.parametrize("module", frame.modules())
def test_names_are_the_librarys(module: str) -> None:
    integration = importlib.import_module(f"connectx.integrations.{module}")
    for each in frame.adapters_of(module):
        library = importlib.import_module(each.plain)
        for name in integration.__all__:
            ours, theirs = getattr(integration, name), each.original(library, name)
            if isinstance(theirs, type):
                assert issubclass(ours, theirs)
            assert ours.__module__ == integration.__name__


def test_a_missing_library_is_named_with_its_release() -> None:
    with (
        pytest.raises(ImportError, match=r"connectx needs nosuch 2\.1 or newer.*nosuch>=2\.1"),
        _dialers.library("nosuch", "2.1"),
    ):
        importlib.import_module("nosuch")


def test_an_old_library_is_named_with_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.26.20")
    with (
        pytest.raises(ImportError, match=r"urllib3 2\.0 or newer.*1\.26\.20 is installed"),
        _dialers.library("urllib3", "2.0"),
    ):
        pytest.fail("it is imported all the same")


class TestDialers:
    def test_a_dialer_or_its_settings(self) -> None:
        dialer = _dialers.blocking(None, ["192.0.2.7"], (40000, 40009))
        assert "1 source, 40000-40009" in repr(dialer)
        assert _dialers.blocking(dialer) is dialer
        with pytest.raises(TypeError, match="not both"):
            _dialers.blocking(dialer, ["192.0.2.7"])
        with pytest.raises(TypeError, match=r"not .192\.0\.2\.7."):
            _dialers.blocking("192.0.2.7")  # type: ignore[arg-type] # as said

    def test_faces_share_their_policy(self) -> None:
        dialer = _dialers.blocking(None)
        awaited = _dialers.awaiting(dialer)
        assert awaited._policy is dialer._policy
        assert _dialers.awaiting(awaited) is awaited
        assert _dialers.blocking(awaited)._policy is dialer._policy


class TestReleases:
    def test_the_page_names_each(self) -> None:
        page = (ROOT / "docs" / "integrations.md").read_text()
        rows = re.findall(r"^\|.*?\| `([\w.]+)` \|(.*)\| ([\w. ]+) \|$", page, re.MULTILINE)
        assert sorted(module for module, *_ in rows) == frame.modules()
        said = {module: release for module, _, release in rows}
        for module in frame.modules():
            source = importlib.import_module(f"connectx.integrations.{module}")
            needed = oldest.of(Path(str(source.__file__)))
            assert said[module] == next(iter(needed.values()), "of Python")

    @pytest.mark.parametrize("module", frame.modules())
    def test_the_page_names_what_is_in_it(self, module: str) -> None:
        page = (ROOT / "docs" / "integrations.md").read_text()
        (names,) = re.findall(rf"\| `{module}` \|(.*)\| [\w. ]+ \|$", page, re.MULTILINE)
        integration = importlib.import_module(f"connectx.integrations.{module}")
        assert set(re.findall(r"`(\w+)(?:\(\))?`", names)) == set(integration.__all__)
