"""How Sphinx builds the documentation (make docs)."""

import importlib.metadata
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import connectx.aio
import connectx.observe

# For json_fields, lab_tables and mermaid, which are beside this file.
sys.path.insert(0, str(Path(__file__).parent))

project = "connectx"
author = "The connectx developers"
copyright = author  # noqa: A001 -- the name Sphinx reads
release = version = importlib.metadata.version("connectx")

extensions = [
    "json_fields",
    "lab_tables",
    "mermaid",
    "myst_parser",
    "notfound.extension",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",
]
myst_enable_extensions = ["colon_fence"]
# Written as on GitHub, which draws it by itself.
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
# The outputs are shown on pages, and no pages themselves.
exclude_patterns = ["_build", "outputs"]

html_theme = "furo"
html_title = "connectx"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f7b6c", "color-brand-content": "#0f6d8c"},
    "dark_css_variables": {"color-brand-primary": "#3fb9a5", "color-brand-content": "#6cb6ff"},
}

# A prompt and the output are not copied.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Pictures for links would need fonts and matplotlib; text is enough.
ogp_social_cards = {"enable": False}

# The page for what is not found is shown at any depth: its links begin at the root.
notfound_urls_prefix = "/"

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
nitpick_ignore_regex = [(r"py:.*", r"(?!connectx\.[a-z]).*")]
python_use_unqualified_type_names = True

# What users import is named as they import it, wherever a signature mentions it.
for module in (connectx, connectx.aio, connectx.observe):
    for name in module.__all__:
        getattr(module, name).__module__ = module.__name__

#: A line of a docstring that describes one argument or field: "strategy: the name of …".
FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def read_docstring(
    app: Sphinx, what: str, name: str, described: object, options: object, lines: list[str]
) -> None:
    """Turn sections (Args:, Returns:, Raises:) into fields, and fields elsewhere into a list."""
    # Napoleon's own hook would take a property's first words for its type.
    if what not in {"attribute", "data", "property"}:
        style = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
        lines[:] = GoogleDocstring(lines, style, app, what, name, described, options).lines()
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


def setup(app: Sphinx) -> None:
    """Register the hook above."""
    app.connect("autodoc-process-docstring", read_docstring)
