"""The plugin that fails skipped tests in CI, run on a small suite of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import limits

ROOT = Path(__file__).parent.parent

SUITE = """
import pytest

@pytest.fixture
def privileged():
    pytest.skip("needs CAP_NET_ADMIN")

def test_passes():
    pass

def test_skips_itself():
    pytest.skip("needs strace")

@pytest.mark.skipif(True, reason="needs ss")
def test_is_marked():
    pass

def test_has_a_fixture_that_skips(privileged):
    pass

def test_needs_another_kernel():
    pytest.skip("kernel: no IP_LOCAL_PORT_RANGE")

@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail():
    assert False
"""


def run(suite: Path, *, ci: str) -> list[str]:
    """Run the suite as CI or not; the closing lines of its report."""
    (suite / "test_skips.py").write_text(SUITE)
    (suite / "test_collection.py").write_text("import pytest; pytest.importorskip('no_such')")
    # Of all the plugins installed only these: to load the others takes longer than the suite.
    plugins = ("xdist", "tests.plugins.no_skips_in_ci", "no:cacheprovider")
    options = [*(f"-p{plugin}" for plugin in plugins), "-n", "1", "-rfE"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, "--rootdir", suite, suite],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=limits.COMMAND_LIMIT,
    )
    return result.stdout.splitlines()


def test_outside_ci_skips_are_skips(tmp_path: Path) -> None:
    assert "1 passed, 5 skipped, 1 xfailed" in run(tmp_path, ci="")[-1]


def test_in_ci_only_the_kernel_is_an_excuse(tmp_path: Path) -> None:
    report = run(tmp_path, ci="true")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 3 errors" in report[-1]
    for reason in ("needs strace", "needs ss", "needs CAP_NET_ADMIN", "no_such"):
        assert any("CI does not allow" in line and reason in line for line in report), reason


def test_the_suite_loads_it(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.has_plugin("tests.plugins.no_skips_in_ci")
