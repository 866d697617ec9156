"""Undo connect() on a socket: connect(2) to an address of family AF_UNSPEC.

socket.connect() cannot say it, since it builds the address in the socket's own
family; hence the C library.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    import socket

#: struct sockaddr: two bytes of family, here AF_UNSPEC (0), and 14 of no meaning.
_UNSPECIFIED = bytes(16)


def disconnect(sock: socket.socket) -> None:
    """Take a socket's peer away, and its port if the kernel had chosen it.

    What connect() and an automatic bind filled in is undone, what bind() was
    told explicitly stays (connect(2), __udp_disconnect in net/ipv4/udp.c,
    tcp_disconnect in net/ipv4/tcp.c):

    - the port is released if a bind to port 0 or connect() picked it, also from
      an IP_LOCAL_PORT_RANGE window of one port; a port given to bind() is kept,
      and only closing the socket releases it; a stream's getsockname() goes on
      naming the port that was released;
    - the source address is kept if bind() set it, also by bind((host, 0));
    - a datagram socket loses SO_BINDTODEVICE, the other options stay;
    - a TCP connection is aborted (RST).

    Raises OSError as connect(2).
    """
    number = _connect(sock.fileno(), _UNSPECIFIED)
    if number:
        raise OSError(number, os.strerror(number))


def make_ready() -> None:
    """Do what `disconnect` needs a descriptor for, since when it is due there may be none.

    Raises OSError (EMFILE) where there is none now.
    """
    _library()


@functools.cache
def _library() -> ctypes.CDLL:
    import ctypes  # noqa: PLC0415 - a millisecond that most users of the library never need

    return ctypes.CDLL(None, use_errno=True)


def _connect(descriptor: int, address: bytes) -> int:
    import ctypes  # noqa: PLC0415 - as above

    return 0 if _library().connect(descriptor, address, len(address)) == 0 else ctypes.get_errno()
