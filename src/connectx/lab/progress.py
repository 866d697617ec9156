"""How an experiment reports how far it is."""

from typing import Protocol


class Watch(Protocol):
    """Is called some ten times a second while an experiment runs."""

    def __call__(self, task: str, phase: str, done: int, total: int, /) -> None:
        """Take note of the progress.

        Args:
            task: What the experiment is doing.
            phase: Which phase of it.
            done: How much of the phase is done.
            total: How much there is to do, at most.
        """
