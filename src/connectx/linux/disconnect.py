"""Undo connect() on a socket: connect(2) to an address of family AF_UNSPEC.

socket.connect() cannot say it, since it builds the address in the socket's own
family; hence the C library.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    import ctypes  # noqa: PLC0415 - a millisecond that most users of the library never need

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
