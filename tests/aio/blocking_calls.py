"""Notices C functions that may block, called in the loop's thread.

By sys.setprofile(), which sees the call of every C function with its object, and lets
it happen; and for files by an audit hook, which sees the path.
"""

import contextlib
import functools
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any

#: Of a socket that has not gettimeout() 0.
SOCKET_CALLS = frozenset(
    {"accept", "_accept", "connect", "connect_ex", "recv", "recvfrom", "recv_into", "recvmsg"}
    | {"send", "sendall", "sendmsg", "sendto"}
)

#: Of any arguments.
ALWAYS = frozenset({"getaddrinfo", "gethostbyname", "getnameinfo", "sleep"})

#: Methods and functions that wait; with a selector of the loop's own they may.
SELECTS = frozenset({"poll", "select"})

#: The lists that files opened by a thread go into.
_WATCHED: dict[int, list[str]] = {}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    found = _WATCHED.get(threading.get_ident()) if event == "open" else None
    # Sysctls are read in the system call itself.
    if found is not None and not str(arguments[0]).startswith("/proc/"):
        frame = sys._getframe(1)
        if not importing(frame):
            found.append(f"open({arguments[0]}) in {frame.f_code.co_qualname}")


@functools.cache
def _install() -> None:
    # There is no taking it out again.
    sys.addaudithook(_audit)


@contextlib.contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """Have a list that grows with each such call of this thread, inside of the block."""
    found: list[str] = []
    _install()

    def profile(frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__self__", None)
        where = f"{name}() in {frame.f_code.co_qualname}"
        if name in SOCKET_CALLS and isinstance(owner, socket.SocketType | socket.socket):
            # Netlink answers in the system call itself: there is nobody to wait for.
            if owner.gettimeout() != 0 and owner.family != socket.AF_NETLINK:
                found.append(where)
        elif (name in ALWAYS and isinstance(owner, ModuleType)) or (
            name in SELECTS
            and function is not select.poll
            and frame.f_globals["__name__"] != "selectors"
        ):
            found.append(where)

    _WATCHED[threading.get_ident()] = found
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)
        del _WATCHED[threading.get_ident()]


def importing(frame: FrameType | None) -> bool:
    """Whether it is the import system that reads, once for each module."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap_external":
            return True
        frame = frame.f_back
    return False


def plant(kind: str) -> None:
    """Block for a moment."""
    if kind == "sleep":
        time.sleep(0.001)
    elif kind == "poll":
        select.poll().poll(1)
    elif kind == "getaddrinfo":
        socket.getaddrinfo("127.0.0.1", 1)
    elif kind == "open":
        path = "/dev/null"
        with open(path, "rb"):  # noqa: PTH123 -- what is to be noticed
            pass
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", 9))
