"""Who owns which 4-tuple, counted by all processes of a race in memory they share."""

from tests.race.processes import shared


class Ownership:
    """A byte for each 4-tuple and process, which only that process sets.

    A process sets its byte when its socket is connected, and clears it before it closes
    the socket. So two bytes set for one 4-tuple mean two sockets on it, unless one of
    the processes has been killed; what it left set the parent clears. Whoever is second
    sees the other's byte, and both look once more before they clear theirs.

    used: which 4-tuples anybody had.
    opened, exhausted, duplicates: counted by each process for itself.
    """

    def __init__(self, tuples: int, processes: int) -> None:
        self._processes = processes
        self._owned = shared(tuples * processes)
        self._doomed = shared(processes)
        self.used = shared(tuples)
        self.opened = shared(processes, "I")
        self.exhausted = shared(processes, "I")
        self.duplicates = shared(processes, "I")

    def take(self, number: int, process: int) -> dict[int, bool]:
        """Own a 4-tuple from now on; the other processes that seem to, as for `rivals`."""
        self._owned[number * self._processes + process] = 1
        self.used[number] = 1
        self.opened[process] += 1
        return self.rivals(number, process)

    def give_up(self, number: int, process: int) -> None:
        """Own a 4-tuple no longer; the socket is still open."""
        self._owned[number * self._processes + process] = 0

    def rivals(self, number: int, process: int) -> dict[int, bool]:
        """The other processes that seem to own a 4-tuple, and whether that is certain.

        It is not where the other may have been killed.
        """
        # In this order: one that was not doomed a moment ago was alive, and what it had
        # owned it owned together with us.
        doomed = self._doomed.tolist()
        start = number * self._processes
        row = self._owned[start : start + self._processes].tolist()
        return {
            other: not doomed[other] for other, owns in enumerate(row) if owns and other != process
        }

    def doom(self, process: int) -> None:
        """Say that a process may be killed from now on."""
        self._doomed[process] = 1

    def clear(self, process: int) -> None:
        """Clear what a killed process has left."""
        self._owned[process :: self._processes] = bytes(len(self.used))
        self._doomed[process] = 0

    def owned(self) -> set[int]:
        """The 4-tuples that somebody owns."""
        processes = self._processes
        return {at // processes for at, owns in enumerate(self._owned.tolist()) if owns}
