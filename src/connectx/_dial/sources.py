"""Which source address to take next.

A source is an address or a prefix. A small prefix stands for its addresses; of a
large one, such as an IPv6 /64, any address will do, and each has a whole port range
of its own toward every destination.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_FREE: Final = "most-free"
ROUND_ROBIN: Final = "round-robin"
STICKY: Final = "sticky"
ROTATIONS: Final = (MOST_FREE, ROUND_ROBIN, STICKY)

#: A prefix of at most so many addresses is a list of them.
_LISTED: Final = 256

#: How many addresses of a large prefix a call tries: where none of these has a free
#: port, something else is wrong.
_DRAWN: Final = 4


class Pool(NamedTuple):
    """The sources of one family: single addresses, and prefixes too large to list."""

    hosts: tuple[str, ...]
    prefixes: tuple[Network, ...]


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
            or str(address) in self.hosts(version)
            or any(address in prefix for prefix in self.prefixes(version))
        )

    def only(self, version: int, key: str) -> str:
        """The one address that a call may have, if it sticks to its key; otherwise "".

        Another one would end the session that it is stuck to.
        """
        pool = self._pools.get(version)
        return self._sticky(pool, key) if pool and self.rotate == STICKY else ""

    def order(self, version: int, load: Callable[[str], int], last: str = "") -> Iterator[str]:
        """The addresses of a version, in the order in which to try them; "" for routing's.

        load: how many connections an address has toward the destination.
        last: which one was tried last toward the destination; "" if that is not known.
        """
        if self.any:
            yield ""
            return
        pool = self._pools.get(version)
        if pool is None:
            return
        if pool.prefixes:
            # Their addresses are as good as unused.
            for number in self._draw(_DRAWN):
                prefix = pool.prefixes[number % len(pool.prefixes)]
                yield pick(prefix, self._number())
        if not pool.hosts:
            return
        if len(pool.hosts) == 1:
            yield pool.hosts[0]
        elif self.rotate == ROUND_ROBIN:
            if last in pool.hosts:
                place = pool.hosts.index(last) + 1
            else:
                # Not always the first one, for those who open one connection at a time.
                place = self._draw(1)[0] % len(pool.hosts)
            yield from pool.hosts[place:] + pool.hosts[:place]
        else:
            first = min(pool.hosts, key=load)
            yield first
            yield from sorted((host for host in pool.hosts if host != first), key=load)

    def _sticky(self, pool: Pool, key: str) -> str:
        """Rendezvous hashing: when a source comes or goes, few keys move."""
        names = (*pool.hosts, *map(str, pool.prefixes))
        best = max(names, key=lambda name: _digest(f"{name} {key}"))
        if "/" not in best:
            return best
        prefix = ipaddress.ip_network(best)
        return pick(prefix, _digest(f"within {best} {key}"))

    def _number(self) -> int:
        """128 random bits."""
        number = 0
        for part in self._draw(4):
            number = number << 32 | part
        return number


def usable(prefix: Network) -> int:
    """How many addresses of a prefix are a host's, as hosts() has it: a large one is a subnet.

    The first one is not, which is the subnet's own or its routers', nor the last one of IPv4.
    """
    return prefix.num_addresses - (2 if prefix.version == 4 else 1)


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
    return {
        version: Pool(tuple(dict.fromkeys(listed)), tuple(prefixes.get(version, ())))
        for version, listed in hosts.items()
    }
