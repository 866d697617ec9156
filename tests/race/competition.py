"""Processes that open and close UDP sockets on the same few ports, and get killed meanwhile."""

import os
import random
import select
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import connectx
from connectx.addresses import PortRange
from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.socket_dump import Filter, records
from tests import limits
from tests.race.connecting import DESTINATIONS, HOST, Address, Connect, by_create_connection
from tests.race.ownership import Ownership
from tests.race.processes import Child, children

_PACKED: Final = socket.inet_aton(HOST)


@dataclass(frozen=True)
class Result:
    """What came of a competition.

    opened: successes. exhausted: failures by PortsExhausted. killed: processes.
    duplicates: how often two processes were seen to own a 4-tuple at once.
    used, in_the_end: 4-tuples, by number, that somebody had, and that somebody owned in
    the end. in_the_kernel: how many sockets the kernel then showed on each.
    """

    opened: int
    exhausted: int
    duplicates: int
    killed: int
    used: set[int]
    in_the_end: set[int]
    in_the_kernel: Counter[int]


class Competition:
    """Some processes, each with a place; who is killed is followed by another in its place.

    ways: how they connect, each time one of them.
    lives: how many processes there are to be killed in each place.
    rounds: how often the last process in each place opens or closes a socket.
    """

    def __init__(
        self,
        ports: PortRange,
        *,
        ways: Sequence[Connect] = (by_create_connection,),
        places: int = 8,
        lives: int = 0,
        rounds: int = 1000,
        seed: int = 0,
    ) -> None:
        self.ports = ports
        self.ways = ways
        self.places = places
        self.rounds = rounds
        self.ownership = Ownership(len(DESTINATIONS) * ports.size, places)
        # When each is to be killed: after how many rounds.
        moments = random.Random(seed)  # noqa: S311 - to be repeatable is what it is for
        self.moments = [[moments.randrange(20, 200) for _ in range(lives)] for _ in range(places)]

    def run(self, prepare: Callable[[], None] = lambda: None) -> Result:
        """prepare: called in each process first."""
        with children() as start:
            running: dict[int, tuple[int, Child]] = {}

            def begin(place: int) -> None:
                moment = self.moments[place].pop() if self.moments[place] else None

                def live(send: Callable[[bytes], None]) -> None:
                    prepare()
                    self._live(place, moment, send)

                child = start(live)
                running[child.report] = place, child

            killed = 0
            finished = []
            for place in range(self.places):
                begin(place)
            while running:
                ready, _, _ = select.select(list(running), [], [], limits.LIMIT)
                assert ready, f"none of {len(running)} processes has come to its end"
                for report in ready:
                    place, child = running.pop(report)
                    if child.receive() == b"k":
                        child.kill()
                        killed += 1
                        self.ownership.clear(place)
                        begin(place)
                    else:
                        child.wait_until_stopped()
                        finished.append(child)
            result = Result(
                sum(self.ownership.opened),
                sum(self.ownership.exhausted),
                sum(self.ownership.duplicates),
                killed,
                {number for number, used in enumerate(self.ownership.used) if used},
                self.ownership.owned(),
                self.in_the_kernel(),
            )
            for child in finished:
                child.resume()
                child.finish()
        return result

    def in_the_kernel(self) -> Counter[int]:
        """How many sockets are connected on each 4-tuple, by its number."""
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
            return Counter(
                self._number(record.source_port, (HOST, record.destination_port))
                for record in records(
                    netlink,
                    Filter(
                        uapi.IPPROTO_UDP,
                        1 << uapi.TCP_ESTABLISHED,
                        source=_PACKED,
                        family=uapi.AF_INET,
                    ),
                )
            )

    def _live(self, place: int, moment: int | None, send: Callable[[bytes], None]) -> None:
        """One process: open or close a socket again and again, one for each destination."""
        chance = random.Random(os.getpid())  # noqa: S311 - nobody is to be surprised
        held: dict[Address, socket.socket] = {}
        for count in range(self.rounds):
            if count == moment:
                self.ownership.doom(place)
                send(b"k")
            destination = chance.choice(DESTINATIONS)
            if sock := held.pop(destination, None):
                number = self._number(sock.getsockname()[1], destination)
                self._count(place, number, self.ownership.rivals(number, place))
                self.ownership.give_up(number, place)
                sock.close()
                continue
            try:
                sock = held[destination] = chance.choice(self.ways)((HOST, 0), destination)
            except connectx.PortsExhausted:
                self.ownership.exhausted[place] += 1
            else:
                number = self._number(sock.getsockname()[1], destination)
                self._count(place, number, self.ownership.take(number, place))
        if moment is None:
            send(b"f")
        # The parent looks at what is open now, and then lets us go, or kills us.
        os.kill(os.getpid(), signal.SIGSTOP)

    def _count(self, place: int, number: int, rivals: dict[int, bool]) -> None:
        if rivals and (any(rivals.values()) or self.in_the_kernel()[number] > 1):
            self.ownership.duplicates[place] += 1

    def _number(self, port: int, destination: Address) -> int:
        return DESTINATIONS.index(destination) * self.ports.size + port - self.ports.low
