"""The distribution: the wheel that is tested, what it holds, and what importing it does."""

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.parse
import zipfile
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest

import connectx
from tests import limits

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel that pip installed, from the note it left (direct_url.json)."""
    note = importlib.metadata.distribution("connectx").read_text("direct_url.json")
    assert note is not None
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(json.loads(note)["url"]).path))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = f"connectx-{connectx.__version__}.dist-info/METADATA"
        return email.message_from_bytes(archive.read(name))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -B: writing bytecode would count as opening a file.
    return subprocess.run(
        [sys.executable, "-I", "-B", "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )


class TestWheel:
    def test_is_what_the_tests_import(self) -> None:
        assert connectx.__file__ is not None
        assert Path(connectx.__file__).parent.parent == Path(sysconfig.get_path("purelib"))

    def test_is_the_one_in_dist(self, wheel: Path) -> None:
        assert wheel == ROOT / "dist" / f"connectx-{connectx.__version__}-py3-none-any.whl"

    def test_holds_the_sources_and_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
        source = ROOT / "src"
        assert files == {
            str(path.relative_to(source))
            for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        suffixes = {Path(name).suffix for name in files - {"connectx/py.typed"}}
        assert suffixes == {".jinja", ".json", ".py", ".yml"}

    def test_holds_the_license_and_the_typing_marker(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        assert f"connectx-{connectx.__version__}.dist-info/licenses/LICENSE" in names
        assert "connectx/py.typed" in names

    def test_needs_nothing_at_run_time(self, metadata: Message) -> None:
        requirements = metadata.get_all("Requires-Dist", [])
        assert [text for text in requirements if "extra ==" not in text] == []
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_names_no_url(self, metadata: Message) -> None:
        assert metadata["Project-URL"] is None
        assert metadata["Home-page"] is None

    def test_has_the_version_of_the_package(self, metadata: Message) -> None:
        assert metadata["Version"] == connectx.__version__


class TestImport:
    def test_exports_what_all_lists(self) -> None:
        defined = {
            name
            for name, value in vars(connectx).items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        }
        # Not all are there before somebody asks for them.
        later = {"Dialer", "connectx", "create_connection"}
        assert set(connectx.__all__) == defined - {"TYPE_CHECKING"} | later
        assert set(connectx.__all__) <= set(dir(connectx))
        for name in connectx.__all__:
            assert getattr(connectx, name).__name__ == name

    def test_knows_no_other_name(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'Diaper'"):
            connectx.Diaper  # type: ignore[attr-defined]  # noqa: B018

    def test_lists_no_name_twice(self) -> None:
        assert len(connectx.__all__) == len(set(connectx.__all__))

    def test_loads_the_standard_library_only_and_no_asyncio_or_ssl(self) -> None:
        result = python(
            "import sys; before = set(sys.modules); import connectx;"
            "print(*(set(sys.modules) - before))"
        )
        loaded = {module.partition(".")[0] for module in result.stdout.split()} - {"connectx"}
        assert loaded <= sys.stdlib_module_names
        assert loaded.isdisjoint({"asyncio", "concurrent", "multiprocessing", "ssl", "subprocess"})

    def test_does_no_input_or_output(self) -> None:
        result = python(
            """
import sys

# Their import is Python's affair: `import ctypes` looks into the running program, for one.
import ctypes, dataclasses, enum, ipaddress, random, secrets, select, socket, struct, threading

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.", "fcntl.", "ctypes.dlopen")):
        looks_for_modules = event == "os.listdir"
        if not looks_for_modules:
            print(event, *arguments)
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        print(event, *arguments)

sys.addaudithook(watch)
import connectx
"""
        )
        assert result.stdout == ""


class TestLocks:
    @pytest.fixture(
        params=sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.name
    )
    def lock(self, request: pytest.FixtureRequest) -> str:
        path: Path = request.param
        return path.read_text()

    def test_name_no_registry(self, lock: str) -> None:
        assert "://" not in lock
        assert "--find-links" not in lock
        assert "index-url" not in lock

    def test_pin_every_package_with_a_hash(self, lock: str) -> None:
        entries = [
            entry
            for entry in lock.replace("\\\n", " ").splitlines()
            if entry and not entry.startswith("#")
        ]
        assert entries
        assert [
            entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry
        ] == []


class TestSetup:
    """scripts/setup where it may not install: it says what is missing, how to get it, and why."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """A copy of what setup reads, on a machine where nobody is root."""
        shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
        shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
        (tmp_path / "bin").mkdir()
        self.command(tmp_path, "id", "echo 1000")
        return tmp_path

    @staticmethod
    def command(tree: Path, name: str, body: str) -> None:
        path = tree / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    @staticmethod
    def setup(tree: Path, what: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tree / "scripts" / "setup", what],
            check=False,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_LIMIT,
            env={"PATH": path or f"{tree / 'bin'}:{os.environ['PATH']}", "PYTHON": "python3"},
        )

    def test_python_without_ensurepip(self, tree: Path) -> None:
        self.command(
            tree,
            "python3",
            f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"',
        )
        result = self.setup(tree, "demo")
        assert result.returncode == 1
        assert "missing: python3-venv" in result.stderr
        assert "apt-get install python3-venv" in result.stderr
        assert not (tree / ".venv").exists()

    def test_python_too_old(self, tree: Path) -> None:
        self.command(tree, "python3", "exit 1")
        result = self.setup(tree, "demo")
        assert result.returncode == 1
        assert "older than Python 3.11" in result.stderr

    @pytest.fixture
    def without_tools(self, tree: Path) -> str:
        """A PATH with the shell's own needs, a .venv that is ready, and no other command."""
        for name in ("dirname", "flock", "sh"):
            found = shutil.which(name)
            assert found is not None
            (tree / "bin" / name).symlink_to(found)
        (tree / ".venv" / "bin").mkdir(parents=True)
        self.command(tree, "../.venv/bin/python", "exit 0")
        return str(tree / "bin")

    def test_unknown_set(self, tree: Path, without_tools: str) -> None:
        result = self.setup(tree, "everything", without_tools)
        assert result.returncode == 2
        assert "usage:" in result.stderr

    def test_bench_needs_a_compiler(self, tree: Path, without_tools: str) -> None:
        result = self.setup(tree, "bench", without_tools)
        assert result.returncode == 1
        assert "apt-get install gcc libc6-dev" in result.stderr

    @pytest.mark.parametrize("package", ["iproute2", "gcc libc6-dev", "prometheus", "redis-server"])
    def test_tests_go_on_without(self, tree: Path, without_tools: str, package: str) -> None:
        result = self.setup(tree, "test", without_tools)
        assert result.returncode == 0
        assert f"apt-get install {package}" in result.stderr
