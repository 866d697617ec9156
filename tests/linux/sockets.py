import socket
from collections.abc import Callable

import pytest

from connectx.linux import uapi

Open = Callable[..., socket.socket]

IPV4 = socket.inet_aton("127.0.0.1")
IPV6 = socket.inet_pton(socket.AF_INET6, "::1")
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1")

UDP_LITE = pytest.param(uapi.IPPROTO_UDPLITE, id="UDP-Lite")
DATAGRAM = [pytest.param(uapi.IPPROTO_UDP, id="UDP"), UDP_LITE]


def pack(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
