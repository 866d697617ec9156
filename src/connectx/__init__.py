"""Connections limited by the 4-tuple, not by the port range.

See connectx() and create_connection(); errors are in connectx.errors and are all
OSErrors.
"""

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

__all__ = [
    "ConnectxError",
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
