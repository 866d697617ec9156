"""How Sphinx builds the documentation (make docs)."""

import importlib.metadata
import re
import sys
from pathlib import Path

# For lab_tables, which is beside this file.
sys.path.insert(0, str(Path(__file__).parent))

project = "connectx"
author = "The connectx developers"
copyright = author  # noqa: A001 -- the name Sphinx reads
release = version = importlib.metadata.version("connectx")

extensions = ["lab_tables", "myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"connectx {release}"
html_copy_source = False

# Single backticks in docstrings are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Users catch the errors and do not make them, so how they are made is left out.
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
# Quotes in docstrings are often code.
smartquotes = False

# References are checked within connectx only. The rest would need other projects' indexes from the
# network, and the documentation builds without one.
nitpick_ignore_regex = [(r"py:.*", r"(?!connectx\b).*")]

#: A line of a docstring that describes one argument or field: "strategy: the name of …".
FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def list_fields(
    _app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Turn the fields in a docstring into a list; otherwise they would run into one paragraph."""
    in_field = False
    listed: list[str] = []
    for line in lines:
        field = FIELD.fullmatch(line)
        if field and (in_field or not listed or not listed[-1]):
            in_field = True
            listed.append(f"- **{field['names']}**: {field['text']}")
        elif in_field and line:
            listed.append(f"  {line.lstrip()}")
        else:
            in_field = False
            listed.append(line)
    lines[:] = listed


def setup(app: object) -> None:
    """Register the hook above."""
    app.connect("autodoc-process-docstring", list_fields)  # type: ignore[attr-defined]
