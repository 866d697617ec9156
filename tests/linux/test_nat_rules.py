"""Listings of rules, as nft and iptables-save print them."""

import pytest

from connectx.addresses import PortRange
from connectx.linux.nat_rules import parse


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
    found = parse(f"table {{\n\t\t{line}\nCOMMIT\n}}\n", language)
    assert [each.ports for each in found] == ([PortRange(*ports)] if ports else [])
    assert [each.text for each in found] == ([f"{language}: {line}"] if ports else [])
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
    (found,) = parse(line, language)
    assert found.forwarded


def test_nothing() -> None:
    assert parse("", "nft") == parse("", "iptables") == []
