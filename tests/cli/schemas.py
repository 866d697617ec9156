"""Checks JSON that a command printed against its schema."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]

from connectx.cli.schemas import schema_text

if TYPE_CHECKING:
    from collections.abc import Iterator


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(schema_text(name))
    return found


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object with named fields in a schema."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and "type" in node:
            yield node
        for each in node.values():
            yield from objects(each)
    elif isinstance(node, list):
        for each in node:
            yield from objects(each)


def strict(name: str) -> dict[str, Any]:
    """A schema that allows no field that it does not describe: programs must ignore new ones."""
    found = copy.deepcopy(schema(name))
    for each in objects(found):
        each["additionalProperties"] = False
    return found


def check(name: str, printed: str) -> dict[str, Any]:
    output: dict[str, Any] = json.loads(printed)
    jsonschema.Draft202012Validator(strict(name)).validate(output)
    return output
