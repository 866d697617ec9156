"""How full conntrack's and TIME_WAIT's tables are: what is read, and where it is read."""

import pytest

from connectx.linux import tables
from connectx.linux.tables import Table
from connectx.sandbox.networks import Network

SOCKSTAT = """\
sockets: used 13
TCP: inuse 1 orphan 0 tw 7 alloc 1 mem 310
UDP: inuse 0 mem 255
"""


def test_time_wait_is_read() -> None:
    assert tables.parse_time_wait(SOCKSTAT) == 7


@pytest.mark.parametrize("text", ["", "UDP: tw 7", "TCP: inuse 1", "TCP: tw", "TCP: tw many"])
def test_a_file_that_says_nothing_of_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"no number of TIME_WAIT|invalid literal"):
        tables.parse_time_wait(text)


def test_the_limit_is_the_namespaces(network: Network) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 4321)
    assert tables.time_wait() == Table(0, 4321)


def test_conntrack(network: Network) -> None:
    found = tables.conntrack()
    if found is None:
        pytest.skip("kernel: has no conntrack")
    assert found.limit == int(network.namespace.get_sysctl("net.netfilter.nf_conntrack_max"))


def test_without_conntrack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_CONNTRACK", "/proc/sys/net/no_such_")
    assert tables.conntrack() is None
