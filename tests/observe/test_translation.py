"""Listings of rules, as nft and iptables-save print them."""

import json

import pytest

from connectx.addresses import PortRange
from connectx.observe.translation import parse_iptables, parse_nft


@pytest.mark.parametrize(
    "line, ports",
    [
        ("-A POSTROUTING -o eth0 -j MASQUERADE", None),
        ("-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-31000", PortRange(1024, 31000)),
        ("-A POSTROUTING -p tcp -j MASQUERADE --random --to-ports 5000", PortRange(5000, 5000)),
        ("-A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1:4000-4999", PortRange(4000, 4999)),
        (
            "-A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1-192.0.2.3:4000-4999 --random",
            PortRange(4000, 4999),
        ),
        ("-A POSTROUTING -p tcp -j SNAT --to-source [2001:db8::1]:40-49", PortRange(40, 49)),
        ("-A POSTROUTING -j SNAT --to-source 192.0.2.1", None),
        ("-A POSTROUTING -j SNAT --to-source 2001:db8::5000", None),
        ("-A PREROUTING -p tcp -j REDIRECT --to-ports 3128", None),
        ("# -j MASQUERADEs", None),
    ],
)
def test_iptables(line: str, ports: PortRange | None) -> None:
    found = parse_iptables(f"*nat\n:POSTROUTING ACCEPT [0:0]\n{line}\nCOMMIT\n")
    assert [each.ports for each in found] == ([ports] if ports else [])


@pytest.mark.parametrize(
    "expression, ports",
    [
        ({"masquerade": None}, None),
        ({"masquerade": {"flags": "random"}}, None),
        ({"masquerade": {"port": {"range": [1024, 31000]}}}, PortRange(1024, 31000)),
        ({"snat": {"addr": "192.0.2.1"}}, None),
        ({"snat": {"addr": "192.0.2.1", "port": 4000}}, PortRange(4000, 4000)),
        ({"dnat": {"addr": "192.0.2.1", "port": 4000}}, None),
        ({"xt": {"type": "target", "name": "MASQUERADE"}}, None),
    ],
)
def test_nft(expression: dict[str, object], ports: PortRange | None) -> None:
    rule = {"family": "ip", "table": "nat", "chain": "post", "expr": [{"accept": None}, expression]}
    listing = json.dumps({"nftables": [{"metainfo": {}}, {"table": {}}, {"rule": rule}]})
    found = parse_nft(listing)
    assert [each.ports for each in found] == ([ports] if ports else [])


def test_nothing() -> None:
    assert parse_nft("") == parse_nft('{"nftables": []}') == parse_iptables("") == []
