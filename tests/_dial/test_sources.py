"""Which source comes next: a pure function of what is open, the rotation and the numbers drawn."""

import ipaddress
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx._dial.slots import Destination, Path
from connectx._dial.sources import MOST_FREE, ROTATIONS, ROUND_ROBIN, STICKY, Sources, usable
from tests import limits

HOSTS = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


def ascending() -> Callable[[int], Sequence[int]]:
    """Numbers that are never the same."""
    numbers = count(1)
    return lambda wanted: [next(numbers) for _ in range(wanted)]


def known(load: dict[str, int] | None = None, last: str = "") -> Destination:
    """A destination with so many connections from each source."""
    destination = Destination("there")
    destination.seen = load or {}
    destination.last = last
    return destination


def order(
    sources: Sources,
    key: str = "",
    version: int = 4,
    load: dict[str, int] | None = None,
    last: str = "",
) -> list[str]:
    only = sources.only(version, key)
    if only:
        return [only]
    return list(sources.order(version, known(load, last)))


class TestRotations:
    def test_most_free_first(self) -> None:
        sources = Sources(HOSTS, MOST_FREE, ascending())
        load = {"192.0.2.1": 7, "192.0.2.2": 3, "192.0.2.3": 5}
        assert order(sources, load=load) == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]
        # Of equals the one that was named first.
        assert order(sources) == HOSTS

    @given(st.lists(st.integers(0, 9), min_size=3, max_size=3))
    def test_most_free_is_a_sort(self, loads: list[int]) -> None:
        sources = Sources(HOSTS, MOST_FREE, ascending())
        found = order(sources, load=dict(zip(HOSTS, loads, strict=True)))
        assert sorted(found) == HOSTS
        of = dict(zip(HOSTS, loads, strict=True))
        assert [of[host] for host in found] == sorted(loads)

    def test_round_robin(self) -> None:
        sources = Sources(HOSTS, ROUND_ROBIN, ascending())
        a, b, c = HOSTS
        assert order(sources, load={a: 9}, last=a) == [b, c, a]
        assert order(sources, load={a: 9}, last=b) == [c, a, b]
        assert order(sources, load={a: 9}, last=c) == [a, b, c]
        # Where nobody remembers, all are first equally often.
        assert Counter(order(sources)[0] for _ in range(30)) == dict.fromkeys(HOSTS, 10)

    def test_sticky_is_one_and_always_the_same(self) -> None:
        sources = Sources(HOSTS, STICKY, ascending())
        for key in ("alice", "bob", ""):
            (host,) = order(sources, key)
            assert [host] == order(sources, key, load={host: 99})
            assert [host] == order(Sources(HOSTS[::-1], STICKY, ascending()), key)

    def test_sticky_spreads_keys_evenly(self) -> None:
        sources = Sources(HOSTS, STICKY, ascending())
        of = Counter(order(sources, f"key {number}")[0] for number in range(3000))
        assert set(of) == set(HOSTS)
        assert all(850 < hits < 1150 for hits in of.values())

    def test_sticky_moves_few_keys_when_a_source_comes(self) -> None:
        before = Sources(HOSTS, STICKY, ascending())
        after = Sources([*HOSTS, "192.0.2.4"], STICKY, ascending())
        keys = [f"key {number}" for number in range(1000)]
        moved = [key for key in keys if order(before, key) != order(after, key)]
        # A quarter, and all of them to the new one.
        assert 180 < len(moved) < 320
        assert {order(after, key)[0] for key in moved} == {"192.0.2.4"}

    def test_sticky_is_the_same_in_another_process(self) -> None:
        code = f"""
from connectx._dial.sources import Sources
sources = Sources({[*HOSTS, "2001:db8::/64"]!r}, "sticky", None)
for version in (4, 6):
    for key in ("alice", "bob", "carol"):
        print(sources.only(version, key))
"""
        result = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": "4711"},
            timeout=limits.COMMAND_LIMIT,
        )
        sources = Sources([*HOSTS, "2001:db8::/64"], STICKY, ascending())
        assert result.stdout.split() == [
            order(sources, key, version)[0]
            for version in (4, 6)
            for key in ("alice", "bob", "carol")
        ]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_which_addresses_are_among_them(rotate: str) -> None:
    sources = Sources([*HOSTS, "2001:db8::/64", "::1"], rotate, ascending())
    for version, host in ((4, HOSTS[1]), (6, "2001:DB8::5"), (6, "0::1")):
        assert sources.has(version, host)
    for version, host in ((4, "192.0.2.4"), (6, "2001:db8:1::5"), (6, "::2")):
        assert not sources.has(version, host)
        assert Sources([], rotate, ascending()).has(version, host)


class TestFamilies:
    def test_each_has_its_own(self) -> None:
        sources = Sources(["192.0.2.1", "::1", "::2"], MOST_FREE, ascending())
        assert order(sources) == ["192.0.2.1"]
        assert order(sources, version=6) == ["::1", "::2"]
        assert sources.hosts(6) == ("::1", "::2")
        assert sources.serves(4)
        assert sources.serves(6)

    @pytest.mark.parametrize("rotate", ROTATIONS)
    def test_none_of_a_family(self, rotate: str) -> None:
        sources = Sources(["192.0.2.1"], rotate, ascending())
        assert not sources.serves(6)
        assert order(sources, version=6) == []
        assert sources.hosts(6) == sources.prefixes(6) == ()

    @pytest.mark.parametrize("rotate", ROTATIONS)
    def test_none_at_all_is_routings_choice(self, rotate: str) -> None:
        sources = Sources([], rotate, ascending())
        assert sources.serves(4)
        assert sources.serves(6)
        assert order(sources) == order(sources, version=6) == [""]

    def test_one_written_in_two_ways_is_one(self) -> None:
        sources = Sources(["::1", "0:0:0:0:0:0:0:1", "::1/128"], MOST_FREE, ascending())
        assert order(sources, version=6) == ["::1"]


class TestPrefixes:
    def test_of_a_64_any_address(self) -> None:
        sources = Sources(["2001:db8::/64"], MOST_FREE, ascending())
        prefix = ipaddress.ip_network("2001:db8::/64")
        seen = [host for _ in range(50) for host in order(sources, version=6)]
        assert all(ipaddress.ip_address(host) in prefix for host in seen)
        assert len(set(seen)) == len(seen) == 200
        assert sources.hosts(6) == ()
        assert sources.prefixes(6) == (prefix,)

    def test_one_that_may_be_full_is_tried_in_full(self) -> None:
        sources = Sources(["10.0.0.0/22"], MOST_FREE, ascending())
        found = order(sources)
        assert set(found) == set(map(str, ipaddress.ip_network("10.0.0.0/22").hosts()))
        # But for the first few, which are drawn by chance, each comes once.
        assert len(found) - len(set(found)) <= 3

    def test_of_a_larger_one_as_many_more_as_have_connections(self) -> None:
        sources = Sources(["2001:db8::/64"], MOST_FREE, ascending())
        destination = known()
        for number in range(10):
            host = f"2001:db8::{number}"
            destination.paths[host] = Path(destination, host)
        assert len(list(sources.order(6, destination))) == 4 + 10

    @pytest.mark.parametrize("rotate", [MOST_FREE, ROUND_ROBIN])
    @pytest.mark.parametrize("given", [HOSTS, ["10.0.0.0/22"], [*HOSTS, "10.0.0.0/22"], []])
    def test_the_first_is_the_first_of_the_order(self, rotate: str, given: list[str]) -> None:
        first = Sources(given, rotate, ascending()).first(4, known())
        assert order(Sources(given, rotate, ascending()))[0] == first

    def test_of_several(self) -> None:
        sources = Sources(["2001:db8:1::/64", "2001:db8:2::/64"], MOST_FREE, ascending())
        seen = Counter(host[:10] for _ in range(50) for host in order(sources, version=6))
        assert set(seen) == {"2001:db8:1", "2001:db8:2"}

    def test_single_addresses_beside_one_come_last(self) -> None:
        """They run out; those of the prefix do not."""
        sources = Sources(["::1", "2001:db8::/64"], MOST_FREE, ascending())
        found = order(sources, version=6)
        assert found[-1] == "::1"
        assert len(found) == 5

    @pytest.mark.parametrize(
        "prefix, hosts",
        [
            ("192.0.2.8/32", ["192.0.2.8"]),
            ("192.0.2.8/31", ["192.0.2.8", "192.0.2.9"]),
            ("192.0.2.8/30", ["192.0.2.9", "192.0.2.10"]),
            ("2001:db8::/127", ["2001:db8::", "2001:db8::1"]),
            ("2001:db8::/126", ["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
        ],
    )
    def test_small_ones_are_lists(self, prefix: str, hosts: list[str]) -> None:
        version = 6 if ":" in prefix else 4
        sources = Sources([prefix], MOST_FREE, ascending())
        assert order(sources, version=version) == hosts
        assert sources.prefixes(version) == ()

    def test_the_largest_that_is_listed(self) -> None:
        assert len(Sources(["192.0.2.0/24"], MOST_FREE, ascending()).hosts(4)) == 254
        assert Sources(["192.0.2.0/23"], MOST_FREE, ascending()).hosts(4) == ()

    def test_a_sticky_key_has_one_address_of_it(self) -> None:
        sources = Sources(["2001:db8::/64"], STICKY, ascending())
        found = {key: order(sources, key, 6) for key in ("alice", "bob")}
        assert found["alice"] != found["bob"]
        assert found["alice"] == order(sources, "alice", 6)
        assert len(found["alice"]) == 1
        assert ipaddress.ip_address(found["bob"][0]) in ipaddress.ip_network("2001:db8::/64")

    @pytest.mark.parametrize("rotate", [MOST_FREE, STICKY])
    @pytest.mark.parametrize("prefix", ["10.0.0.0/23", "2001:db8::/119"])
    def test_a_subnet_has_addresses_that_are_no_hosts(self, prefix: str, rotate: str) -> None:
        """As small ones, whose hosts() are listed."""
        network = ipaddress.ip_network(prefix)
        bits = random.Random(2)  # noqa: S311 -- which ones
        sources = Sources(
            [prefix], rotate, lambda wanted: [bits.getrandbits(32) for _ in range(wanted)]
        )
        seen = {
            host
            for key in range(4000 if rotate == STICKY else 1000)
            for host in order(sources, str(key), network.version)
        }
        hosts = set(map(str, network.hosts()))
        assert seen <= hosts
        assert len(seen) > len(hosts) * 0.9
        assert usable(network) == len(hosts)

    def test_none_is_drawn_without_one(self) -> None:
        def draw(_: int) -> Sequence[int]:
            raise AssertionError("randomness costs a system call")

        assert list(Sources(HOSTS, MOST_FREE, draw).order(4, known())) == HOSTS


@pytest.mark.parametrize("rotate", ["", "random", "most_free"])
def test_unknown_rotations(rotate: str) -> None:
    with pytest.raises(ValueError, match="rotate is one of 'most-free', 'round-robin', 'sticky'"):
        Sources([], rotate, ascending())
