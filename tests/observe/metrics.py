"""Reads metrics, and asks Prometheus' own programs about them."""

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import limits

#: What is delivered with the package.
FILES = files("connectx.observe").joinpath("files")
RULES = FILES.joinpath("rules.yml").read_text("utf-8")
DASHBOARD = FILES.joinpath("dashboard.json").read_text("utf-8")

Values = dict[str, float]


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, of prometheus")
    return found


def promtool(
    *arguments: str | Path, text: str = "", status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run promtool; text: its standard input."""
    result = subprocess.run(
        [program("promtool"), *arguments],
        check=False,
        input=text,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def values(text: str) -> Values:
    """The samples of a scrape, named as in "name{label=value,…}", labels in order."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={sample.labels[key]}" for key in sorted(sample.labels))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found, "a series appears once"
            found[name] = sample.value
    return found
