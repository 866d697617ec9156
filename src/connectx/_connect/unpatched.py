"""What the standard library had before gevent put something else in its place.

gevent may patch a program before or after it imports connectx. Both come to the same: what is
meant for callers is looked up at each call, as socket.socket; what is ours alone comes from here.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any


def _unpatched(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


if TYPE_CHECKING:
    import socket
    import threading

    Local = threading.local
    Socket = socket.socket
else:
    #: One for each thread. gevent's is one for each greenlet, and each of thousands would open
    #: netlink sockets. Those of one thread can share them, since nothing switches to another
    #: greenlet between a request and its reply (connectx.linux.netlink).
    Local = _unpatched("threading", "local")

    #: The standard library's class, a subclass of the C class.
    Socket = _unpatched("socket", "socket")
