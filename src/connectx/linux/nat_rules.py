"""Firewall rules that translate addresses and ports: which of them concern source ports.

Three kinds do: those that translate sources (SNAT, masquerade) to a range of ports, those that
choose the port at random, and those that translate destinations (DNAT, as for a NodePort), since
they may take what arrives at a source port.

Read from the listings of nft(8) and iptables-save(8): the kernel's own interfaces would
take a decoder for every expression that a rule can have.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from connectx.addresses import HIGHEST_PORT, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from connectx.addresses import Endpoint

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

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

_RANDOM: Final = {
    "nft": re.compile(r"\b(?:masquerade|snat)\b.*\b(?:fully-random|random)\b"),
    "iptables": re.compile(r"-j (?:MASQUERADE|SNAT)\b.* --random(?:-fully)?(?:\s|$)"),
}

#: A rule that translates destinations, or goes on to one that does: kube-proxy's rules for
#: NodePorts jump to a chain for each service.
_REDIRECTS: Final = {
    "nft": re.compile(r"\b(?:dnat|redirect)\b"),
    "iptables": re.compile(r"-j (?:DNAT|REDIRECT|KUBE-(?!MARK)\S+)(?:\s|$)"),
}
_NODE_PORTS: Final = "KUBE-NODEPORTS"
_CHAIN: Final = re.compile(r"chain (\S+) \{")
_JUMP: Final = re.compile(r"\b(?:jump|goto)\b (?!KUBE-MARK)")

#: Elements of the map in which kube-proxy's nftables mode keeps NodePorts.
_ELEMENT: Final = re.compile(r"\b(tcp|udp) \. (\d+) : (?:goto|jump) \S+")

#: A value, or a set of values in braces.
_VALUE: Final = r"(?P<not>!= )?(?P<value>\{[^}]*\}|\S+)"

#: The conditions of a rule that are understood; another may narrow it, and never widens it.
_CONDITIONS: Final = {
    "nft": {
        "protocols": re.compile(rf"\b(?:meta l4proto|ip protocol|ip6 nexthdr) {_VALUE}"),
        "sources": re.compile(rf"\bip6? saddr {_VALUE}"),
        "destinations": re.compile(rf"\bip6? daddr {_VALUE}"),
        "ports": re.compile(rf"\b(?P<of>tcp|udp|th) dport {_VALUE}"),
    },
    "iptables": {
        "protocols": re.compile(r"(?:^|\s)(?P<not>! )?-p (?P<value>\S+)"),
        "sources": re.compile(r"(?:^|\s)(?P<not>! )?(?:-s|--source) (?P<value>\S+)"),
        "destinations": re.compile(r"(?:^|\s)(?P<not>! )?(?:-d|--destination) (?P<value>\S+)"),
        "ports": re.compile(r"(?P<not>! )?--dports? (?P<value>\S+)"),
    },
}


class Rule(NamedTuple):
    """A rule that translates, with the conditions that are understood; None stands for any.

    Attributes:
        text: The rule, after the name of its language ("nft: ").
        protocols: The protocols' names.
        sources: The networks that source addresses are in.
        destinations: The networks that destination addresses are in.
        ports: The destination ports.
    """

    text: str
    protocols: tuple[str, ...] | None = None
    sources: tuple[Network, ...] | None = None
    destinations: tuple[Network, ...] | None = None
    ports: tuple[PortRange, ...] | None = None

    def may_concern(self, protocol: str, source: str, destination: Endpoint | None) -> bool:
        """Whether the rule may apply to a connection; what is "" or None is not known."""
        if self.protocols is not None and protocol not in self.protocols:
            return False
        if source and not _among(source, self.sources):
            return False
        if destination is None:
            return True
        return _among(destination.host, self.destinations) and (
            self.ports is None or any(each.contains(destination.port) for each in self.ports)
        )

    def takes_any_of(self, addresses: Iterable[str]) -> bool:
        """Whether what is sent to one of some addresses may be translated."""
        return self.destinations is None or any(
            _among(each, self.destinations) for each in addresses
        )


class Translation(NamedTuple):
    """A rule that translates source addresses to ports of a range.

    Attributes:
        rule: The rule.
        ports: The range.
    """

    rule: Rule
    ports: PortRange

    @property
    def forwarded(self) -> bool:
        """Whether there is a condition on the source, as rules for forwarded packets have."""
        return self.rule.sources is not None


class Rules(NamedTuple):
    """The rules of a network namespace that concern source ports.

    Attributes:
        translations: Those that translate sources to a range of ports.
        random: Those that translate sources to a port chosen at random.
        redirections: Those that translate destinations, by destination port.
        unseen: Why some rules could not be listed.
    """

    translations: tuple[Translation, ...] = ()
    random: tuple[Rule, ...] = ()
    redirections: tuple[Rule, ...] = ()
    unseen: tuple[str, ...] = ()


def read() -> Rules:
    """List the rules of the calling thread's network namespace.

    A host on which none of the commands is installed is taken to have no rules.
    """
    found = Rules()
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
            reason = f"rules: {command[0]}: {said[-1] if said else error.returncode}"
            found = found._replace(unseen=(*found.unseen, reason))
        except (OSError, subprocess.TimeoutExpired) as error:
            found = found._replace(unseen=(*found.unseen, f"rules: {error}"))
        else:
            more = parse(listing, "nft" if command[0] == "nft" else "iptables")
            # The two families of iptables may have the same rule.
            found = Rules(
                _together(found.translations, more.translations),
                _together(found.random, more.random),
                _together(found.redirections, more.redirections),
                found.unseen,
            )
    return found


def _together(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    """Both, and what is in both once."""
    return tuple(dict.fromkeys(first + second))


def _has_nat(tables: str) -> bool:
    """Whether the kernel's list of tables, a file of /proc/net, has the one for translation."""
    try:
        return "nat" in Path("/proc/thread-self/net", tables).read_text("ascii").split()
    except FileNotFoundError:
        return False


def parse(listing: str, language: str) -> Rules:
    """Find the rules that concern source ports; language: "nft" or "iptables"."""
    translations, random, redirections = [], [], []
    chain = ""
    for line in map(str.strip, listing.splitlines()):
        if opened := _CHAIN.match(line):
            chain = opened[1]
        if to := _RULES[language].search(line):
            ports = PortRange(int(to["low"]), int(to["high"] or to["low"]))
            translations.append(Translation(_rule(line, language), ports))
        if _RANDOM[language].search(line):
            random.append(_rule(line, language))
        if _REDIRECTS[language].search(line) or (chain == _NODE_PORTS and _JUMP.search(line)):
            rule = _rule(line, language)
            # One without a port, as a transparent proxy has it, takes nothing but what it is for.
            if rule.ports is not None:
                redirections.append(rule)
        for element in _ELEMENT.finditer(line):
            port = int(element[2])
            text = f"{language}: {element[0]}"
            redirections.append(Rule(text, (element[1],), ports=(PortRange(port, port),)))
    return Rules(tuple(translations), tuple(random), tuple(redirections))


def _rule(line: str, language: str) -> Rule:
    conditions = {}
    for name, pattern in _CONDITIONS[language].items():
        if match := pattern.search(line):
            conditions[name] = match
    protocols = _values(conditions.get("protocols"), str)
    if protocols is None and language == "nft" and "ports" in conditions:
        protocol = conditions["ports"]["of"]
        protocols = None if protocol == "th" else (protocol,)
    return Rule(
        f"{language}: {line}",
        protocols,
        _values(conditions.get("sources"), _network),
        _values(conditions.get("destinations"), _network),
        _values(conditions.get("ports"), _ports),
    )


def _values(match: re.Match[str] | None, convert: Callable[[str], T]) -> tuple[T, ...] | None:
    """The values of a condition; None for any, or where it is not understood."""
    if match is None or match["not"]:
        return None
    try:
        return tuple(convert(each.strip()) for each in match["value"].strip("{} ").split(","))
    except ValueError:
        return None


def _network(text: str) -> Network:
    return ipaddress.ip_network(text, strict=False)


def _ports(text: str) -> PortRange:
    low, _, high = text.replace(":", "-").partition("-")
    return PortRange(int(low or 0), int(high or (low if "-" not in text else HIGHEST_PORT)))


def _among(host: str, networks: tuple[Network, ...] | None) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    return networks is None or any(address in each for each in networks)
