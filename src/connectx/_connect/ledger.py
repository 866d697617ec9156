"""Which source ports are free toward one destination, as far as we know.

A ledger is a hint and never a promise: other processes open and close sockets
without telling us, so the kernel decides about every port we propose, and each
refusal corrects the ledger. What it buys is that near exhaustion the next free
port is found by one ``memchr`` instead of thousands of probes in the kernel.

One byte a port, and only for a destination that needs it: a ledger begins with
the namespace's shared template and copies it when the first port is refused, or
when more than a few were closed within a minute (`connectx._connect.rest`).
Until then ports are drawn at random and collisions are rare, so a crawler with
one connection to each of a million destinations pays for no map at all.

The kernel's own search for a TCP port walks through the range, for all processes, so that
a port comes back late whoever has used it (connectx._connect.walk). Until many ports are
in use, or the walk comes to one that rests, the ledger lets the kernel choose.
"""

from __future__ import annotations

import weakref
from array import array
from typing import TYPE_CHECKING, Final

from connectx._connect.rest import LEDGER, RestingPorts
from connectx._connect.walk import CLEARANCE, IN_USE, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Hashable, Iterable

    from connectx._connect.rest import Rest
    from connectx.addresses import PortRange

FREE: Final = 0
#: Proposed, and since then in use or about to be by a socket that will report its end.
PROPOSED: Final = 1
#: Refused by the kernel, or in use by a socket whose end nobody will report.
TAKEN: Final = 2
#: In ``net.ipv4.ip_local_reserved_ports``.
RESERVED: Final = 3
#: Refused by the kernel on behalf of somebody who may hold the port for good, or may
#: only be trying it, as whoever is inside the UDP lock.
CONTENDED: Final = 4
#: Closed less than a minute ago.
RESTING: Final = 5

_FREE_BYTE: Final = bytes([FREE])
_TAKEN_BYTE: Final = bytes([TAKEN])
_CONTENDED_BYTE: Final = bytes([CONTENDED])

#: More ports than these are not being tried at one moment: somebody holds them. A
#: claim takes some 10 µs, and each process tries one port at a time.
_MOST_CONTENDERS: Final = 64

#: Refused ports are few where they are less than one in so many.
_FEW: Final = 64

#: Ports that rest without a map. Each proposal looks at all of them.
_RESTING_UNMAPPED: Final = 16

#: How often a port is drawn that is in use or rests, before the next free one is taken: after
#: so many the ports are few that are free.
_DRAWS: Final = 16

#: Random numbers that are drawn at once.
_NUMBERS: Final = 256

#: Ports drawn at once for a busy destination. Drawing them one by one would cost a
#: connection as much as two of its system calls.
_BATCH: Final = 64

#: Ports of a range in which walking pays; in a smaller one it comes round within a few calls.
_WALKABLE: Final = 256

#: The part of the ports, one in so many, that may be reserved where walking pays.
_RESERVED: Final = 16

#: Ports that are proposed for the walk to get past one that rests: each makes it go on by 1 to 8.
_PAST: Final = 16

#: The part of the ports, one in so many, that may rest while it does. Every 10 seconds it goes on
#: elsewhere, which may be at one of them; it prefers half of the ports.
_RESTED: Final = 16

#: The part that may rest when it begins anew.
_RESTED_BEFORE: Final = 256


def template(ports: PortRange, reserved: Iterable[PortRange]) -> bytes:
    """The states of a range in which nothing is open yet."""
    states = bytearray(ports.size)
    for hole in reserved:
        first = max(hole.low, ports.low) - ports.low
        last = min(hole.high, ports.high) - ports.low
        if first <= last:
            states[first : last + 1] = bytes([RESERVED]) * (last - first + 1)
    return bytes(states)


class Numbers:
    """Random numbers of 32 bits, each for one use.

    Drawn one by one they would cost a connection as much as a system call.
    """

    __slots__ = ("_random", "_ready")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """Begin with none; random: gives so many octets that nobody else can foresee."""
        self._random = random
        self._ready: list[int] = []

    def take(self) -> int:
        """Return one of them."""
        try:
            return self._ready.pop()
        except IndexError:
            fresh = array("I", self._random(4 * _NUMBERS)).tolist()
            number = fresh.pop()
            self._ready += fresh
            return number


class Shelf:
    """What the ledgers of one source and port range have in common, and where they are kept.

    A ledger is kept for as long as anything refers to it: a plan, or an open socket that
    will report its end to it.

    Attributes:
        low: The first port of the range.
        template: The states of its ports while nothing is open.
        walkable: Whether the kernel's walk through the range is worth having.
        numbers: What ports are drawn with.
        rest: What bounds the memory of ports that rest.
        few: How many of these a destination has without a map.
        shared_calls: How many calls are to share a UDP port at once, since few are left that
            nobody has; see connectx._connect.connection.
        in_vain: How many were after the last port that somebody had.
        windows: How many calls are to have a TCP port searched for in steps of one, since half of
            the ports were in use; as above.
    """

    __slots__ = (
        "__weakref__",
        "_forget",
        "_kept",
        "_name",
        "few",
        "in_vain",
        "low",
        "numbers",
        "rest",
        "shared_calls",
        "template",
        "walkable",
        "windows",
    )

    def __init__(
        self,
        low: int,
        template: bytes,
        numbers: Numbers,
        rest: Rest,
        name: Hashable,
        *,
        walks: bool = False,
    ) -> None:
        """Begin with no ledger; walks: whether the kernel's search for a port is a walk."""
        self.low = low
        self.template = template
        # Wherever it comes to reserved ports, it goes on with the first one behind them.
        self.walkable = (
            walks
            and len(template) >= _WALKABLE
            and template.count(RESERVED) * _RESERVED <= len(template)
        )
        self.numbers = numbers
        self.rest = rest
        self.few = min(_RESTING_UNMAPPED, len(template) // 8)
        self.shared_calls = self.in_vain = self.windows = 0
        self._name = hash(name)
        # Not a WeakValueDictionary, which costs a new destination another microsecond.
        kept: dict[int, _Kept] = {}
        self._kept = kept

        def forget(ended: _Kept) -> None:
            if kept.get(ended.name) is ended:
                # Another thread may have replaced it by now, and that one may have ended, too.
                kept.pop(ended.name, None)

        self._forget = forget

    def __len__(self) -> int:
        return len(self._kept)

    def ledger(self, key: Hashable) -> Ledger:
        """Return the ledger of a destination, by what names it."""
        # A hash does: of two destinations with the same one, each would leave the other's ports
        # alone. Python's is keyed, so nobody makes them so.
        name = hash((self._name, key))
        kept = self._kept
        reference = kept.get(name)
        ledger = None if reference is None else reference()
        if ledger is not None:
            ledger.recycle()
            return ledger
        ledger = Ledger(self, name)
        reference = kept[name] = _Kept(ledger, self._forget)
        reference.name = name
        return ledger


class _Kept(weakref.ref["Ledger"]):
    """A ledger that is kept for as long as anything else refers to it.

    Attributes:
        name: The ledger's.
    """

    __slots__ = ("name",)

    name: int


class Ledger:
    """The free source ports toward one destination.

    Safe under threads without a lock, which would cost every connection more than
    what it prevents: should two threads come to propose the same port, the kernel
    refuses one of them.

    drawn: ports that were drawn and are yet to be proposed, for a call to take the last one.
    refusals: first proposals refused since the kernel was last asked which ports are
    in use; for `connectx._connect.attempt` to count.
    walks: whether the kernel is to choose by itself: it meets no port soon that rests.
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_given",
        "_name",
        "_resting",
        "_shelf",
        "_states",
        "_walk",
        "drawn",
        "refusals",
        "walks",
    )

    def __init__(self, shelf: Shelf, name: int) -> None:
        """Begin with nothing open; name: the destination's, in `Rest`."""
        self._shelf = shelf
        self._name = name
        self._states: bytes | bytearray = shelf.template
        self.drawn: list[int] = []
        self._batch = 1
        # In use or drawn: taking a port from the list then is all there is to a proposal.
        self._given = 0
        # With a map only: `Rest` has those of others.
        self._resting: RestingPorts | None = None
        self.refusals = 0
        self.walks = shelf.walkable
        self._walk: Walk | None = None

    @property
    def mapped(self) -> bool:
        """Whether there is a map: somebody has refused a port, or many rest."""
        return self._states is not self._shelf.template

    @property
    def in_use(self) -> int:
        """How many ports are proposed, or in use by sockets that will report their end."""
        return self._given - len(self.drawn)

    def propose(self) -> int:
        """A port that may be free, or 0 when none is known to be.

        What becomes of it is to be told: `released` or `refused` or `held`.

        Each is a random one of the free ports, and where these are few the next one after a
        random port (RFC 6056, algorithm 1); where there is none, the one that has rested
        longest. A destination that is busy has some drawn before they are needed.
        """
        if self.drawn:
            try:
                return self.drawn.pop()
            except IndexError:
                # Another thread was quicker.
                pass
        shelf, states, name = self._shelf, self._states, self._name
        if (
            self._batch == 1
            and states is shelf.template
            and name not in shelf.rest.few
            and name not in shelf.rest.former
        ):
            index = shelf.numbers.take() % len(states)
            if not states[index]:
                # A new destination, most of the time: without the list, which takes as long.
                self._batch = 2
                self._given += 1
                return shelf.low + index
        return self._propose_anew()

    def found(self, port: int) -> None:
        """The kernel has chosen this port by itself; as if it had been proposed."""
        self._given += 1
        if not self.walks:
            self._mark(port, PROPOSED)
            return
        walk = self._walk
        if walk is None:
            self._find_walk(port)
            return
        # Here and in released(), not in methods: calls would take 3 % of a connection's time.
        step = (port - walk.at) % walk.size
        clear = walk.clear - step
        walk.at, walk.clear = port, clear
        if clear < 2 * step or self._given > walk.most:
            self._look_ahead(walk, step)

    def _find_walk(self, port: int) -> None:
        """Follow the kernel's walk, unless there is nothing to keep away from."""
        name, rest, size = self._name, self._shelf.rest, len(self._shelf.template)
        if self._resting or name in rest.few or name in rest.former or self._given * IN_USE > size:
            self._walk = Walk(size, port)
            self._look_ahead(self._walk, 0)

    def _look_ahead(self, walk: Walk, step: int) -> None:
        self.walks = self._may_walk() and walk.look(self._rest_now(), step)
        if not self.walks:
            self._batch = _PAST

    def released(self, port: int) -> None:
        """The port is in use no more; it rests from now on."""
        self._given -= 1
        shelf, states = self._shelf, self._states
        index = port - shelf.low
        if not 0 <= index < len(states):
            # The range has changed, and the kernel has chosen a port by itself.
            return
        # rest.now() and _mark() are written out: calls would take 320 ns and not 265 here.
        now = int(shelf.rest.clock()) & 0xFFFF
        closed = now << 16 | port
        resting = self._resting
        walk = self._walk
        if walk is not None and self.walks:
            # Where the kernel has just been is what it comes to last.
            clear = (port - walk.at - 1) % walk.size - CLEARANCE
            if clear < walk.clear:
                walk.clear = clear
                if clear < 0:
                    self.walks = False
                    self._batch = _PAST
        if states is shelf.template:
            if shelf.rest.note(self._name, closed, shelf.few):
                return
            resting = self._map()
        else:
            if resting is None:
                resting = self._resting = RestingPorts()
            resting.closed.append(closed)
            states[index] = RESTING  # type: ignore[index] # what is not shared can be written
        if now != resting.noted:
            # Once a second: it takes as long as all of the rest.
            resting.noted = now
            self.walks = self.walks and self._may_walk()
            # A window that few others have is kept for this ledger alone.
            maps = 1 + (len(shelf) == 1)
            shelf.rest.add(self, LEDGER + 4 * len(resting) + maps * len(states), now)

    def wake_all(self) -> None:
        """Have no port rest any more."""
        resting, self._resting = self._resting, None
        for port in resting or ():
            self._wake(port)
        self._walk, self.walks = None, self._may_walk()
        if self.in_use <= 0:
            # Nothing is open: an idle destination holds no map.
            self._forget(self._shelf.template)

    def refused(self, port: int, *, contended: bool = False) -> None:
        """The kernel refused the port: from now on a map is worth its size.

        contended: whoever is in the way may be gone the next moment.
        """
        self._given -= 1
        if port in self.drawn:
            # Drawn twice, while there was no map to tell.
            others = [other for other in self.drawn if other != port]
            self._given -= len(self.drawn) - len(others)
            self.drawn = others
        if self._states is self._shelf.template:
            self._map()
        self._mark(port, CONTENDED if contended else TAKEN)

    def retry(self) -> bool:
        """Have those ports again that others may only have been trying; whether there are any."""
        states = self._states
        if not 0 < states.count(CONTENDED) <= _MOST_CONTENDERS:
            return False
        self._states = states.replace(_CONTENDED_BYTE, _FREE_BYTE)
        return True

    def held(self, port: int) -> None:
        """A proposed port is in use by a socket whose end nobody will report."""
        self._given -= 1
        if self._states is not self._shelf.template:
            self._mark(port, TAKEN)

    def survey(self, taken: Iterable[int]) -> bool:
        """Begin again from what the kernel says is in use; whether any port is left.

        It says nothing of who holds a port against everybody. Trying each of these
        costs microseconds and there may be a whole range of them, so they are believed
        to be held until `recycle`.
        """
        known = self._states
        states = bytearray(self._shelf.template)
        low, size = self._shelf.low, len(states)
        if known.count(CONTENDED) > _MOST_CONTENDERS:
            index = known.find(CONTENDED)
            while index >= 0:
                states[index] = CONTENDED
                index = known.find(CONTENDED, index + 1)
        for port in taken:
            if 0 <= port - low < size and states[port - low] == FREE:
                states[port - low] = TAKEN
        if known is self._shelf.template:
            self._resting = RestingPorts(self._shelf.rest.take_few(self._name))
        self._forget(states)
        self._mark_resting()
        return states.find(FREE) >= 0 or states.find(RESTING) >= 0

    def recycle(self) -> None:
        """Where no port is left, give those that were refused another chance.

        Whoever held them may be gone; nobody told us. And where they are few, begin
        again: sockets that were thrown away unclosed have not told us either.
        """
        states = self._states
        if self.drawn or states.find(FREE) >= 0 or states.find(RESTING) >= 0:
            return
        states = states.replace(_CONTENDED_BYTE, _TAKEN_BYTE)
        if states.count(TAKEN) * _FEW >= len(states):
            self._states = states.replace(_TAKEN_BYTE, _FREE_BYTE)
        else:
            self._forget(bytearray(self._shelf.template))

    def _propose_anew(self) -> int:
        """Draw some ports; returns one of them, 0 if there are none."""
        states, shelf = self._states, self._shelf
        low, size, take = shelf.low, len(states), shelf.numbers.take
        mapped = states is not shelf.template
        # A call after these may let the kernel walk again, which has gone on meanwhile, past
        # what was in its way. Where that is by now is not known.
        self._walk = None
        self.walks = self._may_walk(_RESTED_BEFORE)
        # Without a map, what is known of ports that rest, and of those drawn with it.
        avoided = set[int]() if mapped else shelf.rest.few_of(self._name)
        proposals: list[int] = []
        for _ in range(self._batch):
            for _ in range(_DRAWS):
                index = take() % size
                if not states[index] and low + index not in avoided:
                    break
            else:
                index = self._next_free(index, avoided)
                if index < 0 and not proposals:
                    if not mapped and avoided:
                        # So few ports that all rest.
                        self._map()
                        return self._propose_anew()
                    # Those that rest one by one, so that each has rested longest.
                    index = self._take_oldest()
                if index < 0:
                    break
            proposals.append(low + index)
            if mapped:
                states[index] = PROPOSED  # type: ignore[index] # what is not shared can be written
            else:
                avoided.add(low + index)
        self._batch = min(2 * self._batch, _BATCH)
        self._given += len(proposals)
        port = proposals.pop() if proposals else 0
        # Another thread may have drawn at the same moment.
        self.drawn += proposals
        return port

    def _next_free(self, index: int, avoided: Container[int]) -> int:
        """Return where the next port is that is free and not avoided; -1 for none."""
        low, find = self._shelf.low, self._states.find
        for start, end in ((index, len(self._states)), (0, index)):
            found = find(FREE, start, end)
            while found >= 0 and low + found in avoided:
                found = find(FREE, found + 1, end)
            if found >= 0:
                return found
        return -1

    def _take_oldest(self) -> int:
        """Return where the port is that has rested longest; -1 for none."""
        states, low = self._states, self._shelf.low
        resting = self._resting
        while resting:
            index = resting.take_oldest() - low
            if states[index] == RESTING:
                return index
        return -1

    def _may_walk(self, part: int = _RESTED) -> bool:
        """Forget what has rested; returns whether few enough ports are in use, or rest."""
        shelf, resting = self._shelf, self._resting
        size = len(shelf.template)
        for port in resting.take_rested(shelf.rest.now()) if resting is not None else ():
            self._wake(port)
        return shelf.walkable and self._given * IN_USE <= size and len(resting or ()) * part <= size

    def _rest_now(self) -> Collection[int]:
        """Return the ports that rest."""
        resting = self._resting
        return self._shelf.rest.few_of(self._name) if resting is None else list(resting)

    def _map(self) -> RestingPorts:
        """Have a map, on which what is known is marked; returns what rests."""
        self._states = bytearray(self._shelf.template)
        for port in self.drawn:
            self._mark(port, PROPOSED)
        resting = self._resting = RestingPorts(self._shelf.rest.take_few(self._name))
        self._mark_resting()
        return resting

    def _mark_resting(self) -> None:
        low, states = self._shelf.low, self._states
        for port in self._resting or ():
            if states[port - low] == FREE:
                self._mark(port, RESTING)

    def _wake(self, port: int) -> None:
        """Have a port again that has rested, unless it is in use by now."""
        states = self._states
        index = port - self._shelf.low
        if states is not self._shelf.template and states[index] == RESTING:
            self._mark(port, FREE)

    def _forget(self, states: bytes | bytearray) -> None:
        self._states = states
        self._given -= len(self.drawn)
        self.drawn = []
        self._batch = 1
        self.refusals = 0

    def _mark(self, port: int, state: int) -> None:
        states = self._states
        index = port - self._shelf.low
        if isinstance(states, bytearray) and 0 <= index < len(states):
            states[index] = state
