"""The fills in C: compiled on demand, called in this process.

C is called once for a block of connections, and takes the time of each by itself: nothing of
Python is in its figures.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.filling import Block
from bench.harness import LOOPBACK
from bench.lookups import open_sock_diag

if TYPE_CHECKING:
    from bench.filling import BlockOpener
    from bench.harness import Address
    from bench.ways import Fill

_SOURCES: Final = Path(__file__).parent / "c"
BUILD: Final = Path(__file__).parent / "build"
FLAGS: Final = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-shared",
    "-fPIC",
)

#: The names of the functions, and of the source files without their suffix.
PROGRAMS: Final = {socket.SOCK_STREAM: "fill_tcp", socket.SOCK_DGRAM: "fill_udp"}


def compiler() -> str | None:
    """Return the path of a C compiler: of $CC, else of gcc or cc; None if there is none."""
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")


def build(name: str) -> Path:
    """Compile c/NAME.c, unless that was done since it changed, and return the library.

    Raises:
        FileNotFoundError: There is no compiler.
        subprocess.CalledProcessError: The compiler failed; its messages are on standard error.
    """
    source = _SOURCES / f"{name}.c"
    library = BUILD / f"{name}.so"
    newest = max(path.stat().st_mtime_ns for path in _SOURCES.iterdir())
    if library.exists() and library.stat().st_mtime_ns > newest:
        return library
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C compiler: install gcc")
    BUILD.mkdir(exist_ok=True)
    # Renamed into place, so that no process loads a library that is half written.
    unfinished = library.with_suffix(f".{os.getpid()}")
    subprocess.run([program, *FLAGS, "-o", unfinished, source], check=True)
    unfinished.replace(library)
    return library


class _SockaddrIn(ctypes.Structure):
    """struct sockaddr_in; see ip(7)."""

    _fields_ = (
        ("sin_family", ctypes.c_ushort),
        ("sin_port", ctypes.c_ubyte * 2),
        ("sin_addr", ctypes.c_ubyte * 4),
        ("sin_zero", ctypes.c_ubyte * 8),
    )


def native_fill(fill: Fill) -> BlockOpener:
    """Prepare the fill in C."""
    name = PROGRAMS[fill.kind]
    function = ctypes.CDLL(str(build(name)), use_errno=True)[name]
    function.restype = ctypes.c_size_t
    source = _sockaddr_in((fill.source or LOOPBACK, 0))
    start: tuple[object, ...]
    if fill.kind is socket.SOCK_DGRAM:
        netlink = open_sock_diag()
        start = (netlink.fileno(), ctypes.byref(source))
    else:
        netlink = None
        start = (None if fill.source is None else ctypes.byref(source),)
    size = len(fill.destinations)
    destinations = (_SockaddrIn * size)(*map(_sockaddr_in, fill.destinations))
    ports = (ctypes.c_uint16 * size)(*fill.shuffled_ports())
    descriptors = (ctypes.c_int * size)()
    times = (ctypes.c_int64 * size)()
    done = 0

    def open_block(count: int, _netlink: socket.socket | None = netlink) -> Block:
        # The default keeps the netlink socket open for as long as this lives.
        nonlocal done
        first, count = done, min(count, size - done)
        done += function(
            *start,
            _after(destinations, first),
            _after(ports, first),
            ctypes.c_size_t(count),
            _after(descriptors, first),
            _after(times, first),
        )
        number = ctypes.get_errno()
        failed = done - first < count
        return Block(
            [
                socket.socket(socket.AF_INET, fill.kind, 0, fileno=descriptor)
                for descriptor in descriptors[first:done]
            ],
            times[first:done],
            OSError(number, os.strerror(number)) if failed else None,
        )

    return open_block


def _sockaddr_in(address: Address) -> _SockaddrIn:
    host, port = address
    return _SockaddrIn(
        socket.AF_INET,
        (ctypes.c_ubyte * 2)(*port.to_bytes(2, "big")),
        (ctypes.c_ubyte * 4)(*socket.inet_aton(host)),
    )


def _after(elements: ctypes.Array[Any], first: int) -> object:
    """Return a pointer to an array's element."""
    return ctypes.byref(elements, first * ctypes.sizeof(elements._type_))
