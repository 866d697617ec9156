"""Which source address to take next.

A source is an address or a prefix. A small prefix stands for its addresses; of a
large one, such as an IPv6 /64, any address will do, and each has a whole port range
of its own toward every destination.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

    class Known(Protocol):
        """What is known of a destination: connectx._dial.slots.Destination."""

        @property
        def paths(self) -> Mapping[str, Path]:
            """Where connections come from, by source address."""

        @property
        def seen(self) -> Mapping[str, int]:
            """Others' connections, by source address."""

        @property
        def last(self) -> str:
            """The source address that was tried last; "" if that is not known."""

    class Path(Protocol):
        """From one source address to the destination: connectx._dial.slots.Path."""

        @property
        def slots(self) -> Collection[object]:
            """The connections."""


MOST_FREE: Final = "most-free"
ROUND_ROBIN: Final = "round-robin"
STICKY: Final = "sticky"
ROTATIONS: Final = (MOST_FREE, ROUND_ROBIN, STICKY)

#: The same, for type checkers.
Rotation: TypeAlias = Literal["most-free", "round-robin", "sticky"]

#: A prefix of at most so many addresses is a list of them.
_LISTED: Final = 256

#: How many addresses of a large prefix a call tries at first, by chance: nearly always the
#: first one has a port.
_DRAWN: Final = 4

#: A prefix of at most so many addresses is tried in full before a call is refused. Of a larger
#: one, as many more are tried as have connections: more cannot be full.
_WALKED: Final = 2**16


class Pool(NamedTuple):
    """The sources of one family.

    Attributes:
        hosts: Single addresses.
        prefixes: Prefixes too large to list.
        places: Where an address stands among the single ones.
    """

    hosts: tuple[str, ...]
    prefixes: tuple[Network, ...]
    places: Mapping[str, int]


class Sources:
    """The addresses to connect from, and in which order to try them.

    sources: IP addresses and prefixes in text form, of both families; without any, the
    routing table chooses.
    rotate: "most-free", "round-robin" or "sticky".
    draw: gives as many 32-bit numbers as asked for.

    Raises ValueError for what is no address or prefix, and for an unknown rotation.
    """

    def __init__(
        self, sources: Iterable[str], rotate: str, draw: Callable[[int], Sequence[int]]
    ) -> None:
        if rotate not in ROTATIONS:
            raise ValueError(f"rotate is one of {', '.join(map(repr, ROTATIONS))}, not {rotate!r}")
        if isinstance(sources, str):
            raise TypeError(f"sources is a list of addresses, not one: {sources!r}")
        self.rotate = rotate
        self._draw = draw
        self._pools = _pools(sources)
        self.any = not self._pools

    def __str__(self) -> str:
        if self.any:
            return "any source"
        hosts = sum(len(pool.hosts) for pool in self._pools.values())
        prefixes = sum(len(pool.prefixes) for pool in self._pools.values())
        counted = [(hosts, "source", "sources"), (prefixes, "prefix", "prefixes")]
        return ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counted if n)

    def serves(self, version: int) -> bool:
        """Whether there is a source of IP version 4 or 6."""
        return self.any or version in self._pools

    def hosts(self, version: int) -> tuple[str, ...]:
        """The single addresses of a version."""
        return self._pools[version].hosts if version in self._pools else ()

    def prefixes(self, version: int) -> tuple[Network, ...]:
        """The prefixes of a version that are too large to list."""
        return self._pools[version].prefixes if version in self._pools else ()

    def single(self, version: int) -> str | None:
        """Return the only source of a version, "" for routing's choice; None if there are more."""
        if self.any:
            return ""
        hosts = self.hosts(version)
        return hosts[0] if len(hosts) == 1 and not self.prefixes(version) else None

    def has(self, version: int, host: str) -> bool:
        """Whether an address is one of the sources."""
        address = ipaddress.ip_address(host)
        return (
            self.any
            or (version in self._pools and str(address) in self._pools[version].places)
            or any(address in prefix for prefix in self.prefixes(version))
        )

    def only(self, version: int, key: str) -> str:
        """The one address that a call may have, if it sticks to its key; otherwise "".

        Another one would end the session that it is stuck to.
        """
        pool = self._pools.get(version)
        return self._sticky(pool, key) if pool and self.rotate == STICKY else ""

    def first(self, version: int, known: Known) -> str:
        """Return the address of a version to try first; "" for routing's.

        version: one that there are sources of. known: the destination.
        """
        if self.any:
            return ""
        pool = self._pools[version]
        if pool.prefixes:
            # Their addresses are as good as unused.
            return self._drawn(pool)
        if self.rotate == ROUND_ROBIN:
            return pool.hosts[self._place(pool, known)]
        return least_loaded(pool.hosts, known)

    def order(self, version: int, known: Known) -> Iterator[str]:
        """Yield the addresses of a version in the order in which to try them, from `first` on."""
        if not self.serves(version):
            return
        first = self.first(version, known)
        yield first
        if self.any:
            return
        pool = self._pools[version]
        hosts, tried = pool.hosts, {first}
        if pool.prefixes:
            for _ in range(_DRAWN - 1):
                drawn = self._drawn(pool)
                tried.add(drawn)
                yield drawn
        if self.rotate == ROUND_ROBIN and hosts:
            place = pool.places.get(first, -1)
            if place < 0:
                place = self._place(pool, known)
            hosts = hosts[place:] + hosts[:place]
        else:
            hosts = tuple(sorted(hosts, key=lambda host: load(known, host)))
        for host in hosts:
            if host not in tried:
                yield host
        for prefix in pool.prefixes:
            yield from self._rest(prefix, tried.union(hosts), len(known.paths))

    def _rest(self, prefix: Network, tried: Collection[str], used: int) -> Iterator[str]:
        """Yield the other addresses of a prefix, from any on, for as long as they may be full.

        used: how many have connections.
        """
        size = usable(prefix)
        start = _joined(self._draw(4))
        for number in range(start, start + (size if size <= _WALKED else used)):
            host = pick(prefix, number)
            if host not in tried:
                yield host

    def _sticky(self, pool: Pool, key: str) -> str:
        """Rendezvous hashing: when a source comes or goes, few keys move."""
        names = (*pool.hosts, *map(str, pool.prefixes))
        best = max(names, key=lambda name: _digest(f"{name} {key}"))
        if "/" not in best:
            return best
        prefix = ipaddress.ip_network(best)
        return pick(prefix, _digest(f"within {best} {key}"))

    def _place(self, pool: Pool, known: Known) -> int:
        """Return whose turn it is after the source that was tried last."""
        last = pool.places.get(known.last)
        # Not always the first one's, for those who open one connection at a time.
        return (self._draw(1)[0] if last is None else last + 1) % len(pool.hosts)

    def _drawn(self, pool: Pool) -> str:
        """Return an address of the prefixes, by chance."""
        which, *parts = self._draw(5)
        return pick(pool.prefixes[which % len(pool.prefixes)], _joined(parts))


def load(known: Known, host: str) -> int:
    """Return how many connections there are from a source address."""
    path = known.paths.get(host)
    return (len(path.slots) if path is not None else 0) + known.seen.get(host, 0)


def least_loaded(hosts: Sequence[str], known: Known) -> str:
    """Return the first of the addresses that have the fewest connections.

    Most calls need no more of the order. Of hundreds, the first without any is soon found,
    and where all have some, a loop takes half the time of min() with a function for its key.
    """
    paths, seen = known.paths, known.seen
    best, least = hosts[0], None
    for host in hosts:
        path = paths.get(host)
        number = len(path.slots) if path is not None else 0
        if seen:
            number += seen.get(host, 0)
        if least is None or number < least:
            best, least = host, number
            if not number:
                break
    return best


def usable(prefix: Network) -> int:
    """How many addresses of a prefix are a host's, as hosts() has it: a large one is a subnet.

    The first one is not, which is the subnet's own or its routers', nor the last one of IPv4.
    """
    return prefix.num_addresses - (2 if prefix.version == 4 else 1)


def _joined(parts: Iterable[int]) -> int:
    """Return one number of 32 bits each."""
    number = 0
    for part in parts:
        number = number << 32 | part
    return number


def pick(prefix: Network, number: int) -> str:
    """One of these addresses, for any number."""
    return str(prefix[1 + number % usable(prefix)])


def _digest(text: str) -> int:
    # The same in every process and on every machine, unlike hash().
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def _pools(sources: Iterable[str]) -> dict[int, Pool]:
    hosts: dict[int, list[str]] = {}
    prefixes: dict[int, list[Network]] = {}
    for source in sources:
        if not isinstance(source, str):
            raise TypeError(f"a source is text, such as '192.0.2.7' or '2001:db8::/64': {source!r}")
        try:
            network = ipaddress.ip_network(source)
        except ValueError as error:
            raise ValueError(f"not an IP address or prefix: {error}") from error
        if "%" in source:
            raise ValueError(f"{source!r}: leave the scope out, it is the destination's")
        if network.is_multicast or network.is_unspecified or network.prefixlen == 0:
            raise ValueError(f"{source!r} is no address to connect from")
        if network.version == 6 and network.network_address.ipv4_mapped:
            raise ValueError(f"{source!r}: give the IPv4 address, which serves IPv4-mapped too")
        version = network.version
        listed = hosts.setdefault(version, [])
        if network.num_addresses > _LISTED:
            prefixes.setdefault(version, []).append(network)
        else:
            # hosts() leaves out what is no address in a subnet, if this is one.
            listed += [str(host) for host in network.hosts()]
    pools: dict[int, Pool] = {}
    for family, found in hosts.items():
        once = tuple(dict.fromkeys(found))
        places = {host: place for place, host in enumerate(once)}
        pools[family] = Pool(once, tuple(prefixes.get(family, ())), places)
    return pools
