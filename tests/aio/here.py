"""What the tests of connectx.aio have in common."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.socket_dump import Filter, records

LOW, HIGH = 20001, 20008
SIZE: Final = HIGH - LOW + 1
PORTS: Final = list(range(LOW, HIGH + 1))

#: A port with a listener that answers no SYN.
SILENT: Final = 9998

FACTORIES: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@contextlib.contextmanager
def names(**hosts: tuple[str, ...]) -> Iterator[None]:
    """Have names with these addresses on the running loop, in this order."""
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: Any, port: Any, **keywords: Any) -> list[Any]:
        await asyncio.sleep(0)
        if host not in hosts:
            # A source, which is an address.
            return socket.getaddrinfo(host, port, **keywords)
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                keywords.get("type", 0),
                0,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in hosts[host]
        ]

    with pytest.MonkeyPatch.context() as patch:
        # Of the loop, since uvloop has a resolver of its own.
        patch.setattr(loop, "getaddrinfo", getaddrinfo, raising=False)
        yield


def silent(stack: contextlib.ExitStack, host: str) -> str:
    """An address whose listener answers no SYN, since its queue is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.socket(family))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, SILENT))
    listener.listen(0)
    filler = stack.enter_context(socket.socket(family))
    # Not one of the ports of the range.
    filler.bind((host, 30000))
    filler.connect((host, SILENT))
    return host


def descriptors() -> dict[str, str]:
    """What the process has open, netlink sockets apart, which the library keeps."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- thousands of times
        with contextlib.suppress(OSError):
            target = str(Path(f"/proc/self/fd/{name}").readlink())
            if target.startswith("socket:"):
                sock = socket.socket(fileno=int(name))
                family = sock.family
                sock.detach()
                if family == socket.AF_NETLINK:
                    continue
            if not target.startswith("/proc/"):
                found[name] = target
    return found


def client_sockets() -> list[tuple[int, int, int]]:
    """State and ports of every TCP and UDP socket here that has one of the range's ports."""
    found = []
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        for protocol in (uapi.IPPROTO_TCP, uapi.IPPROTO_UDP):
            for family in (uapi.AF_INET, uapi.AF_INET6):
                found += [
                    (record.state, record.source_port, record.destination_port)
                    for record in records(netlink, Filter(protocol, family=family))
                    if LOW <= record.source_port <= HIGH
                ]
    return sorted(found)
