"""Firewall rules that translate source addresses (SNAT, masquerade) to a range of ports.

Read from the listings of nft(8) and iptables-save(8): the kernel's own interfaces would
take a decoder for every expression that a rule can have.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from connectx.addresses import PortRange

#: Seconds that a listing of rules may take.
_TIMEOUT: Final = 10.0

#: The kinds of tables, and for each the commands that list it: the first one that is
#: installed is used. iptables-nft's rules are nftables rules. Listing an older table that
#: does not exist would create it, with its hooks and with connection tracking, so for these
#: the kernel's list of tables (a file of /proc/net, "" for nftables) is read first.
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

#: A condition on the source address, as rules for containers or a network behind us have it.
_FORWARDED: Final = re.compile(r"\bip6? saddr\b|(?:^|\s)(?:-s|--source)\s")


class Translation(NamedTuple):
    """A rule that translates source addresses to ports of a range.

    Attributes:
        text: The rule, after the name of its language ("nft: ").
        ports: The range.
        forwarded: Whether the rule has a condition on the source address, and so may be
            about forwarded packets only.
    """

    text: str
    ports: PortRange
    forwarded: bool = False


def read_translations() -> tuple[tuple[Translation, ...], tuple[str, ...]]:
    """List the rules of the calling thread's network namespace that name a range of ports.

    Returns:
        The rules, and why some of them could not be listed. A host on which none of the
        commands is installed is taken to have no rules.
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
                command, capture_output=True, text=True, timeout=_TIMEOUT, check=True
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
    """Whether the kernel's list of tables, a file of /proc/net, has the one for translation."""
    try:
        return "nat" in Path("/proc/thread-self/net", tables).read_text("ascii").split()
    except FileNotFoundError:
        return False


def parse(listing: str, language: str) -> list[Translation]:
    """Find the rules that name a range of ports; language: "nft" or "iptables"."""
    found = []
    for line in map(str.strip, listing.splitlines()):
        rule = _RULES[language].search(line)
        if rule is not None:
            low, high = int(rule["low"]), int(rule["high"] or rule["low"])
            forwarded = _FORWARDED.search(line) is not None
            found.append(Translation(f"{language}: {line}", PortRange(low, high), forwarded))
    return found
