"""JSON as commands print it: each kind of output has a schema, with a version.

The schemas are JSON Schema (2020-12), in the directory ``json_schemas`` beside this file. An output
names its schema and the version, as in "usage/1". Within a version, fields are only added; a field
that goes, or means something else, makes a new version.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx._diagnosis.facts import Row
    from connectx.addresses import Endpoint
    from connectx.linux.processes import Process

#: The version of each schema.
VERSIONS: Final = {
    "demo": 1,
    "doctor": 1,
    "kill": 1,
    "lab-latency": 1,
    "lab-report": 1,
    "lab-simulate": 1,
    "lab-techniques": 1,
    "usage": 1,
}


def add_json(options: argparse._ActionsContainer, name: str, help_: str = "print JSON") -> None:
    """Add --json, and --json-schema, which prints the schema of that name."""
    options.add_argument("--json", action="store_true", help=help_)
    add_json_schema(options, name, "--json")


def add_json_schema(options: argparse._ActionsContainer, name: str, of: str) -> None:
    """Add --json-schema for an output that the option `of` asks for."""
    options.add_argument(
        "--json-schema",
        action=_PrintSchema,
        nargs=0,
        const=name,
        help=f"print the JSON Schema of what {of} gives, which describes each field, and exit",
    )


def print_json(name: str, fields: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print an output, on one line without an indent."""
    # A JSON parser need not know NaN.
    print(json.dumps(tagged(name, fields), indent=indent, allow_nan=False))


def tagged(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an output with the name and the version of its schema."""
    return {"schema": f"{name}/{VERSIONS[name]}", **fields}


def schema_text(name: str) -> str:
    """Return a schema as its file has it."""
    from importlib.resources import files  # noqa: PLC0415 - only this needs it

    return files("connectx.cli").joinpath("json_schemas", f"{name}.json").read_text("utf-8")


def of_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint with its address as the kernel writes it, and its port."""
    scope = f"%{endpoint.scope_id}" if endpoint.scope_id else ""
    return {"address": f"{endpoint.host}{scope}", "port": endpoint.port}


def of_process(process: Process | None) -> dict[str, Any] | None:
    """Return a process."""
    return None if process is None else process._asdict()


def of_pair(row: Row, *, processes: bool) -> dict[str, Any]:
    """Return the sockets from a source to a destination."""
    fields: dict[str, Any] = {
        "protocol": row.protocol,
        "source": row.source,
        "destination": of_endpoint(row.destination),
        "in_use": row.in_use,
        "reusable": row.reusable,
        "capacity": row.capacity,
        "free": row.free,
        "utilisation": round(row.utilisation, 3),
        "states": dict(row.states),
    }
    if processes:
        fields["processes"] = [
            {"process": of_process(process), "in_use": number}
            for process, number in row.processes.items()
        ]
    return fields


class _PrintSchema(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del namespace, values, option_string
        sys.stdout.write(schema_text(str(self.const)))
        parser.exit()
