"""See exhaustion coming, and explain it.

`snapshot` counts source ports in use per destination; `examine` finds what is wrong, and
`diagnose` what an error comes from that was caught.
"""

from typing import TYPE_CHECKING

from connectx.observe.usage import Row, Snapshot, snapshot

if TYPE_CHECKING:
    from connectx.observe.doctor import Diagnosis, diagnose, examine

__all__ = ["Diagnosis", "Row", "Snapshot", "diagnose", "examine", "snapshot"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # As in connectx: who counts needs no doctor, which takes as long again to load.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from connectx.observe import doctor  # noqa: PLC0415 - as said

        globals()[name] = getattr(doctor, name)
        return globals()[name]
