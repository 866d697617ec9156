"""Rules that translate source addresses to a range of ports, by nft(8) and iptables-save(8)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from connectx.addresses import PortRange

#: Seconds that a listing of rules may take.
_PATIENCE: Final = 10.0

#: Rules are of nftables, also those that iptables(8) makes by it, or of the older tables. To
#: list one of those that is not there would make it, with its hooks and with connection
#: tracking, so the kernel's own list is asked first. Of the commands the first one that is
#: installed lists all rules of its kind.
_LISTINGS: Final = (
    ("", (("nft", "list", "ruleset"), ("iptables-nft-save", "-t", "nat"))),
    ("ip_tables_names", (("iptables-legacy-save", "-t", "nat"), ("iptables-save", "-t", "nat"))),
    (
        "ip6_tables_names",
        (("ip6tables-legacy-save", "-t", "nat"), ("ip6tables-save", "-t", "nat")),
    ),
)

_RULES: Final = {
    "nft": re.compile(
        r"\b(?:masquerade|snat)\b(?: ip6?)? to "
        r"(?:[\d.-]+|\[\S+\])?:(?P<low>\d+)(?:-(?P<high>\d+))?(?:\s|$)"
    ),
    "iptables": re.compile(
        r"-j (?:MASQUERADE\b.*--to-ports |SNAT\b.*--to-source (?:[\d.-]+|\[\S+\]):)"
        r"(?P<low>\d+)(?:-(?P<high>\d+))?(?:\s|$)"
    ),
}

#: What a rule for certain source addresses has, as for containers or a network behind us.
_FORWARDED: Final = re.compile(r"\bip6? saddr\b|(?:^|\s)(?:-s|--source)\s")


class Translation(NamedTuple):
    """A rule that translates source addresses to ports of a range.

    text: the rule. forwarded: whether it is for certain source addresses only, which may
    be those of others than this host.
    """

    text: str
    ports: PortRange
    forwarded: bool = False


def read_translations() -> tuple[tuple[Translation, ...], tuple[str, ...]]:
    """The rules with a range of ports in the calling thread's namespace, and what went wrong.

    Where none of the commands is installed, there are taken to be no rules.
    """
    found: list[Translation] = []
    unseen = []
    for tables, alternatives in _LISTINGS:
        command = next((each for each in alternatives if shutil.which(each[0])), None)
        if command is None:
            continue
        try:
            if tables and not _has_nat(tables):
                continue
            listing = subprocess.run(  # noqa: S603 - a fixed command, without a shell
                command, capture_output=True, text=True, timeout=_PATIENCE, check=True
            ).stdout
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            unseen.append(f"rules: {command[0]}: {said[-1] if said else error.returncode}")
        except (OSError, subprocess.TimeoutExpired) as error:
            unseen.append(f"rules: {error}")
        else:
            found += parse(listing, "nft" if command[0] == "nft" else "iptables")
    return tuple(dict.fromkeys(found)), tuple(unseen)


def _has_nat(tables: str) -> bool:
    """Whether there is a table for translation; tables: the name of the kernel's list."""
    try:
        return "nat" in Path("/proc/thread-self/net", tables).read_text("ascii").split()
    except FileNotFoundError:
        return False


def parse(listing: str, language: str) -> list[Translation]:
    """The rules in a listing that translate to a range of ports; language: of `_RULES`."""
    found = []
    for line in map(str.strip, listing.splitlines()):
        rule = _RULES[language].search(line)
        if rule is not None:
            low, high = int(rule["low"]), int(rule["high"] or rule["low"])
            forwarded = _FORWARDED.search(line) is not None
            found.append(Translation(f"{language}: {line}", PortRange(low, high), forwarded))
    return found
