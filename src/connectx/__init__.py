"""Connections limited by the 4-tuple, not by the port range.

See connectx(), create_connection() and Dialer; errors are in connectx.errors and are all
OSErrors. connectx.aio has the same for asyncio.
"""

import sys
from typing import TYPE_CHECKING

from connectx.errors import (
    ConnectxError,
    NotSupported,
    PortHeld,
    PortsExhausted,
    RangeNotHonoured,
    SourceNotLocal,
    TupleInUse,
)

if TYPE_CHECKING:
    from connectx.blocking import connectx, create_connection
    from connectx.dialer import Dialer

__all__ = [
    "ConnectxError",
    "Dialer",
    "NotSupported",
    "PortHeld",
    "PortsExhausted",
    "RangeNotHonoured",
    "SourceNotLocal",
    "TupleInUse",
    "connectx",
    "create_connection",
    "supported",
]

__version__ = "0.1.0"


def supported() -> bool:
    """Return whether connectx works on this platform, which is Linux.

    Elsewhere each call raises `NotSupported`, or connects as the standard library does where
    ``fallback="plain"`` is given.
    """
    return sys.platform == "linux"


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Loaded when it is asked for, and kept here then: the command line's commands do
        # without most of it, and start in half of the time.
        if name == "Dialer":
            from connectx import dialer as home  # noqa: PLC0415 - as said
        elif name in __all__:
            from connectx import blocking as home  # noqa: PLC0415 - as said
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(home, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
