"""Tables of the documentation, drawn from the schemas of what commands print as JSON.

:::{json-fields} usage
:::
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMAS: Final = Path(__file__).parent.parent / "src" / "connectx" / "cli" / "json_schemas"


def text(name: str) -> list[str]:
    """A schema as Markdown: a table of its fields, and one of those of each object in it."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))
    lines = [schema["description"], "", *_table(schema, schema)]
    for kind, described in schema["$defs"].items():
        if "properties" in described:
            title = f": {described['title']}" if "title" in described else ""
            lines += ["", f"*{kind}*{title}", "", *_table(described, schema)]
    return lines


def _table(described: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    rows = ["| field | type | |", "|---|---|---|"]
    for field, kind, meaning in _rows(described, schema, ""):
        rows.append(f"| `{field}` | {kind} | {meaning} |")
    return rows


def _rows(
    described: dict[str, Any], schema: dict[str, Any], above: str
) -> Iterator[tuple[str, str, str]]:
    for name, field in described["properties"].items():
        meaning = field.get("description") or _resolved(field, schema)["description"]
        yield above + name, _kind(field, schema), meaning
        if "properties" in field:
            yield from _rows(field, schema, f"{above}{name}.")
        elif "properties" in field.get("items", {}):
            yield from _rows(field["items"], schema, f"{above}{name}[].")


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The type of a field in a word or two."""
    if "anyOf" in field:
        return " or ".join(_kind(each, schema) for each in field["anyOf"])
    if "$ref" in field:
        resolved = _resolved(field, schema)
        name = field["$ref"].rpartition("/")[2]
        return f"*{name}*" if "properties" in resolved else _kind(resolved, schema)
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(each)}`" for each in field["enum"])
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    if kinds == ["array"]:
        return f"array of {_kind(field['items'], schema)}"
    return " or ".join(kinds)


def _resolved(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return found


class JsonFields(Directive):
    """The directive; its argument is the name of a schema."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the tables as Markdown, which the page is in."""
        path = str(SCHEMAS / f"{self.arguments[0]}.json")
        self.state.document.settings.env.note_dependency(path)
        container = nodes.container()
        lines = StringList(text(self.arguments[0]), source=path)
        self.state.nested_parse(lines, 0, container)
        return container.children


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("json-fields", JsonFields)
