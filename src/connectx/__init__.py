"""Connections limited by the 4-tuple, not by the port range.

See connectx(), create_connection() and Dialer; errors are in connectx.errors and are all
OSErrors. connectx.aio has the same for asyncio.
"""

from typing import TYPE_CHECKING

from connectx.blocking import connectx, create_connection
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
]

__version__ = "0.1.0"


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Loaded when it is asked for: what most programs do not use would take longer to
        # import than all the rest may.
        if name == "Dialer":
            from connectx.dialer import Dialer  # noqa: PLC0415 - as said

            return Dialer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
