"""Rules that translate source addresses to a range of ports, by nft(8) and iptables-save(8)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, Final

from connectx.addresses import PortRange
from connectx.core.facts import Translation

#: Seconds that a listing of rules may take.
_PATIENCE: Final = 10.0

_COMMANDS: Final = (
    ("nft", "--json", "list", "ruleset"),
    # The name without a variant stands for either, as the administrator has chosen; what the
    # other one has set is in force all the same.
    ("iptables-save", "--table", "nat"),
    ("iptables-legacy-save", "--table", "nat"),
    ("ip6tables-save", "--table", "nat"),
    ("ip6tables-legacy-save", "--table", "nat"),
)

_IPTABLES: Final = re.compile(
    r"-j MASQUERADE\b.*--to-ports (?P<to>\d+(?:-\d+)?)"
    r"|-j SNAT\b.*--to-source (?:[\d.-]+|\[\S+\]):(?P<snat>\d+(?:-\d+)?)(?:\s|$)"
)


def read_translations() -> tuple[tuple[Translation, ...], tuple[str, ...]]:
    """The rules with a range of ports in the calling thread's namespace, and what went wrong.

    Where none of the commands is installed, there are taken to be no rules.
    """
    found: list[Translation] = []
    unseen = []
    for command in _COMMANDS:
        if shutil.which(command[0]) is None:
            continue
        try:
            listing = subprocess.run(  # noqa: S603 - a fixed command, without a shell
                command, capture_output=True, text=True, timeout=_PATIENCE, check=True
            ).stdout
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            unseen.append(f"rules: {command[0]}: {said[-1] if said else error.returncode}")
        except (OSError, subprocess.TimeoutExpired) as error:
            unseen.append(f"rules: {error}")
        else:
            parse = parse_nft if command[0] == "nft" else parse_iptables
            found += parse(listing)
    return tuple(dict.fromkeys(found)), tuple(unseen)


def parse_nft(listing: str) -> list[Translation]:
    """The rules in `nft --json list ruleset` that translate to a range of ports."""
    found = []
    for item in json.loads(listing or "{}").get("nftables", ()):
        rule = item.get("rule")
        if rule is None:
            continue
        for statement in rule.get("expr", ()):
            for kind in ("masquerade", "snat"):
                ports = _ports_of(statement.get(kind))
                if ports is not None:
                    place = f"{rule['family']} {rule['table']} {rule['chain']}"
                    found.append(Translation(f"nft: {place}: {kind} to :{ports}", ports))
    return found


def _ports_of(translation: Any) -> PortRange | None:
    port = translation.get("port") if isinstance(translation, dict) else None
    if isinstance(port, int):
        return PortRange(port, port)
    if isinstance(port, dict) and "range" in port:
        low, high = port["range"]
        return PortRange(int(low), int(high))
    return None


def parse_iptables(listing: str) -> list[Translation]:
    """The rules in `iptables-save` that translate to a range of ports."""
    found = []
    for line in listing.splitlines():
        match = _IPTABLES.search(line.strip())
        if match:
            low, _, high = (match["to"] or match["snat"]).partition("-")
            found.append(
                Translation(f"iptables: {line.strip()}", PortRange(int(low), int(high or low)))
            )
    return found
