"""How an experiment tells how far it is."""

from typing import Protocol


class Watch(Protocol):
    """Is told what an experiment is at, some ten times a second."""

    def __call__(self, task: str, phase: str, done: int, total: int, /) -> None:
        """Take note: in its `phase` the `task` has done so many things of at most `total`."""
