"""See exhaustion coming, and explain it.

`snapshot` counts the source ports in use toward each destination. `examine` finds what is wrong
with the source ports of a machine, and `diagnose` says what caused an error that you caught.
"""

from typing import TYPE_CHECKING

from connectx.observe.usage import Row, Snapshot, snapshot

if TYPE_CHECKING:
    from connectx._diagnosis.causes import Cause, Remedy
    from connectx._diagnosis.finding import Finding, Severity
    from connectx.observe.doctor import Diagnosis, diagnose, examine

__all__ = [
    "Cause",
    "Diagnosis",
    "Finding",
    "Remedy",
    "Row",
    "Severity",
    "Snapshot",
    "diagnose",
    "examine",
    "snapshot",
]


if not TYPE_CHECKING:
    _MODULES = {
        "Cause": "connectx._diagnosis.causes",
        "Diagnosis": "connectx.observe.doctor",
        "Finding": "connectx._diagnosis.finding",
        "Remedy": "connectx._diagnosis.causes",
        "Severity": "connectx._diagnosis.finding",
        "diagnose": "connectx.observe.doctor",
        "examine": "connectx.observe.doctor",
    }

    def __getattr__(name: str) -> object:
        # Counting needs no doctor, which takes as long again to load.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - as said

        globals()[name] = getattr(import_module(_MODULES[name]), name)
        return globals()[name]
