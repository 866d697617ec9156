"""Turn a skipped test into a failed one when CI is set.

On a developer's machine a test may be skipped for a missing package or privilege. In CI the same
skip would let a whole area go untested unnoticed. The one skip that stays is a kernel that cannot
do what the test is about: its reason starts with ``kernel:``.
"""

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

ALLOWED_PREFIX = "kernel:"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge what a test reports."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module that skips itself while it is imported (``importorskip``)."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    # An expected failure is reported as skipped too.
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = _reason(report)
    if not reason.startswith(ALLOWED_PREFIX):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # pytest reports a skip as (path, line, "Skipped: the reason").
    message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return message.removeprefix("Skipped: ")
