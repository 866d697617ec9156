"""Undo connect() on a socket, by connect(2) to an address of family AF_UNSPEC.

Python's socket.connect() cannot do it, since it builds addresses of the socket's own family. So
this calls the C library.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    import socket

#: struct sockaddr: two octets for the family, here AF_UNSPEC (0), and 14 unused ones.
_UNSPECIFIED = bytes(16)


def disconnect(sock: socket.socket) -> None:
    """Disconnect a socket from its peer, and release its port if the kernel chose it.

    It undoes what connect() and an automatic bind did, and keeps what bind() was told
    (__udp_disconnect in net/ipv4/udp.c, tcp_disconnect in net/ipv4/tcp.c):

    - A port chosen by connect() or by bind() to port 0 is released, even one from a window
      (IP_LOCAL_PORT_RANGE) of a single port. Only closing the socket releases a port that was
      given to bind(). getsockname() of a stream still names the port that was released.
    - A source address set by bind() stays, also after bind((host, 0)).
    - A datagram socket loses SO_BINDTODEVICE; its other options stay.
    - A TCP connection is aborted with a reset.

    Raises:
        OSError: As connect(2) fails.
    """
    number = _connect(sock.fileno(), _UNSPECIFIED)
    if number:
        raise OSError(number, os.strerror(number))


def make_ready() -> None:
    """Load what `disconnect` needs, while there is a descriptor to load it with.

    Raises:
        OSError: EMFILE if no descriptor is left.
    """
    _library()


@functools.cache
def _library() -> ctypes.CDLL:
    import ctypes  # noqa: PLC0415 - takes a millisecond, and few programs need it

    return ctypes.CDLL(None, use_errno=True)


def _connect(descriptor: int, address: bytes) -> int:
    import ctypes  # noqa: PLC0415 - as above

    return 0 if _library().connect(descriptor, address, len(address)) == 0 else ctypes.get_errno()
