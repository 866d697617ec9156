"""Listings of rules, as nft and iptables-save print them."""

from typing import Final

import pytest

from connectx.addresses import Endpoint, PortRange
from connectx.linux.nat_rules import Rules, parse


@pytest.mark.parametrize(
    "language, line, ports",
    [
        ("iptables", "-A POSTROUTING -o eth0 -j MASQUERADE", None),
        ("iptables", "-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-31000", (1024, 31000)),
        ("iptables", "-A POSTROUTING -p tcp -j MASQUERADE --random --to-ports 50", (50, 50)),
        ("iptables", "-A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1:4000-4999", (4000, 4999)),
        (
            "iptables",
            "-A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1-192.0.2.3:40-49 --random",
            (40, 49),
        ),
        ("iptables", "-A POSTROUTING -p tcp -j SNAT --to-source [2001:db8::1]:40-49", (40, 49)),
        ("iptables", "-A POSTROUTING -j SNAT --to-source 192.0.2.1", None),
        ("iptables", "-A POSTROUTING -j SNAT --to-source 2001:db8::5000", None),
        ("iptables", "-A PREROUTING -p tcp -j REDIRECT --to-ports 3128", None),
        ("iptables", "# -j MASQUERADEs", None),
        ("nft", "oifname eth0 masquerade", None),
        ("nft", "ip protocol tcp masquerade to :1024-31000", (1024, 31000)),
        ("nft", "ip protocol tcp masquerade to :1024-31000 random", (1024, 31000)),
        ("nft", "ip protocol tcp snat to 192.0.2.1:4000", (4000, 4000)),
        ("nft", "ip protocol tcp snat to 192.0.2.1-192.0.2.9:4000-4009", (4000, 4009)),
        ("nft", "meta l4proto tcp snat ip6 to [2001:db8::1]:40-49", (40, 49)),
        ("nft", "ip daddr 192.0.2.1 snat to 198.51.100.7", None),
        ("nft", "tcp dport 80 dnat to 192.0.2.1:4000", None),
    ],
)
def test_ports(language: str, line: str, ports: tuple[int, int] | None) -> None:
    found = parse(f"table {{\n\t\t{line}\nCOMMIT\n}}\n", language).translations
    assert [each.ports for each in found] == ([PortRange(*ports)] if ports else [])
    assert [each.rule.text for each in found] == ([f"{language}: {line}"] if ports else [])
    assert not any(each.forwarded for each in found)


@pytest.mark.parametrize(
    "language, line",
    [
        ("iptables", "-A POSTROUTING -s 10.0.0.0/8 -p tcp -j MASQUERADE --to-ports 1-9"),
        ("nft", "ip saddr 10.0.0.0/8 ip protocol tcp masquerade to :1-9"),
        ("nft", "ip6 saddr fd00::/8 meta l4proto tcp masquerade to :1-9"),
    ],
)
def test_for_certain_sources_only(language: str, line: str) -> None:
    (found,) = parse(line, language).translations
    assert found.forwarded


def test_nothing() -> None:
    assert parse("", "nft") == parse("", "iptables") == Rules()


@pytest.mark.parametrize(
    "language, line, concerned, others",
    [
        ("nft", "ip daddr 192.0.2.0/24 tcp dport 443 masquerade to :1-9", True, False),
        ("nft", "ip daddr { 198.51.100.1, 192.0.2.9 } masquerade to :1-9", True, False),
        ("nft", "meta l4proto { tcp, udp } th dport { 443, 8000-8080 } snat to :1-9", True, False),
        ("nft", "ip protocol udp masquerade to :1-9", False, True),
        ("nft", "tcp dport 80 masquerade to :1-9", False, False),
        ("nft", "ip saddr 10.0.0.0/8 masquerade to :1-9", False, False),
        # What is not understood may be any.
        ("nft", "ip daddr != 192.0.2.9 ip daddr @somewhere masquerade to :1-9", True, True),
        ("nft", "ip daddr @somewhere masquerade to :1-9", True, True),
        ("iptables", "-A P -d 192.0.2.9/32 -p tcp -j MASQUERADE --to-ports 1-9", True, False),
        ("iptables", "-A P -p tcp -m tcp --dport 443 -j MASQUERADE --to-ports 1-9", True, False),
        (
            "iptables",
            "-A P -p tcp -m multiport --dports 80,400:500 -j MASQUERADE --to-ports 1-9",
            True,
            False,
        ),
        ("iptables", "-A P ! -d 192.0.2.9/32 -j MASQUERADE --to-ports 1-9", True, True),
        ("iptables", "-A P -s 10.0.0.0/8 -j MASQUERADE --to-ports 1-9", False, False),
    ],
)
def test_whom_a_rule_concerns(language: str, line: str, *, concerned: bool, others: bool) -> None:
    (found,) = parse(line, language).translations
    asked = found.rule.may_concern
    assert asked("tcp", "192.0.2.7", Endpoint("192.0.2.9", 443)) == concerned
    assert asked("udp", "192.0.2.7", Endpoint("198.51.100.7", 53)) == others
    assert asked("tcp", "", None) or found.rule.protocols == ("udp",)


@pytest.mark.parametrize(
    "language, line, random",
    [
        ("nft", "oifname eth0 masquerade", False),
        ("nft", "oifname eth0 masquerade fully-random", True),
        ("nft", "oifname eth0 masquerade random", True),
        ("nft", "ip protocol tcp snat to 192.0.2.1:4000-4009 fully-random", True),
        ("iptables", "-A POSTROUTING -j MASQUERADE", False),
        ("iptables", "-A KUBE-POSTROUTING -j MASQUERADE --random-fully", True),
        ("iptables", "-A POSTROUTING -j SNAT --to-source 192.0.2.1 --random", True),
        ("iptables", "-A PREROUTING -j DNAT --to-destination 192.0.2.1 --random", False),
    ],
)
def test_random_ports(language: str, line: str, *, random: bool) -> None:
    found = parse(line, language).random
    assert [each.text for each in found] == [f"{language}: {line}"] * random


#: As kube-proxy's three modes, and people, write them.
REDIRECTIONS: Final = [
    ("nft", "tcp dport 30080 dnat to 10.244.0.5:8080", [(30080, 30080)]),
    ("nft", "udp dport { 53, 30000-30009 } redirect to :53", [(53, 53), (30000, 30009)]),
    ("nft", "fib daddr type local tcp dport 30000-32767 dnat to 10.0.0.1", [(30000, 32767)]),
    ("nft", "ip daddr 192.0.2.1 dnat to 10.244.0.5", None),
    ("nft", "tcp dport 30080 accept", None),
    ("nft", "elements = { tcp . 30080 : goto external-x,", [(30080, 30080)]),
    ("nft", "chain KUBE-NODEPORTS {\ntcp dport 30080 jump KUBE-EXT-X\n}", [(30080, 30080)]),
    ("nft", "chain KUBE-NODEPORTS {\ntcp dport 30080 jump KUBE-MARK-MASQ\n}", None),
    ("nft", "chain ssh {\ntcp dport 30080 jump other\n}", None),
    ("iptables", "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-X", [(30080, 30080)]),
    ("iptables", "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-MARK-MASQ", None),
    ("iptables", "-A PREROUTING -p tcp --dport 8000:8009 -j REDIRECT --to-ports 1", [(8000, 8009)]),
    ("iptables", "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1", [(80, 80)]),
    ("iptables", "-A PREROUTING -p tcp --dport 80 -j ACCEPT", None),
]


@pytest.mark.parametrize("language, lines, ports", REDIRECTIONS)
def test_redirections(language: str, lines: str, ports: list[tuple[int, int]] | None) -> None:
    found = parse(lines, language).redirections
    assert [each.ports for each in found] == (
        [] if ports is None else [tuple(PortRange(*each) for each in ports)]
    )


def test_redirections_of_somebody_elses_addresses() -> None:
    (found,) = parse(
        "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j KUBE-SVC-X", "iptables"
    ).redirections
    assert not found.takes_any_of(["192.0.2.7", "127.0.0.1"])
    assert found.takes_any_of(["10.96.0.1"])
