"""The ways to connect that race each other, and how to spoil or to interrupt them."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import connectx
from connectx._connect import callers_socket, connection, udp_connect
from connectx.linux import uapi

Address: TypeAlias = tuple[str, int]
Connect: TypeAlias = Callable[[Address, Address], socket.socket]

HOST: Final = "127.0.0.1"
DESTINATIONS: Final = [(HOST, 9000), (HOST, 9001)]


def by_create_connection(source: Address, destination: Address) -> socket.socket:
    return connectx.create_connection(destination, source_address=source, type=socket.SOCK_DGRAM)


def by_connectx(source: Address, destination: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        connectx.connectx(sock, source, destination)
    except BaseException:
        sock.close()
        raise
    return sock


class WithOptions(NamedTuple):
    """Connects a caller's socket that has options set.

    device: Whether it is bound to the loopback device.
    processor: SO_INCOMING_CPU; -1 for none.
    mapped: Whether it is an IPv6 socket with IPv4-mapped addresses.
    """

    device: bool = False
    processor: int = -1
    mapped: bool = False

    def make(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if self.mapped else socket.AF_INET, socket.SOCK_DGRAM)
        if self.device:
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, b"lo")
        if self.processor >= 0:
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_INCOMING_CPU, self.processor)
        return sock

    def address(self, address: Address) -> Address:
        return "::ffff:" * self.mapped + address[0], address[1]

    def __call__(self, source: Address, destination: Address) -> socket.socket:
        sock = self.make()
        try:
            connectx.connectx(sock, self.address(source), self.address(destination))
        except BaseException:
            sock.close()
            raise
        return sock

    def serve(self, port: int) -> socket.socket:
        """Bind a socket that shares its port, and receives."""
        sock = self.make()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self.address((HOST, port)))
        return sock


def by_stream(source: Address, destination: Address) -> socket.socket:
    return connectx.create_connection(destination, source_address=source)


def replace_claim(variant: Callable[..., None]) -> None:
    """Put another function in the place of the UDP lock, in this process."""
    share_every_port()
    replaced = 0
    for module in (connection, udp_connect):
        if getattr(module, "claim", None) is not None:
            module.claim = variant  # type: ignore[attr-defined]
            replaced += 1
    assert replaced > 1


def share_every_port() -> None:
    """Have no port tried alone in this process: each goes through the lock."""
    for module in (connection, callers_socket):
        module.claim_alone = lambda *_, **__: False  # type: ignore[attr-defined]


def leave_out(look: str) -> None:
    """Take a look at rivals out of the UDP section, in this process."""

    @contextlib.contextmanager
    def nobody(*_: object) -> Iterator[bytes]:
        yield b""

    share_every_port()
    assert hasattr(udp_connect, look)
    setattr(udp_connect, look, {"_ipv4_twin": nobody}.get(look, lambda *_: True))


#: The moments of a claim, in order. Alone there is no option to set before connect().
MOMENTS: Final = (
    "before bind",
    "bound",
    "before lock",
    "locked",
    "before lookup",
    "before connect",
    "connected",
    "unlocked",
)


def interrupt(moment: str, number: int) -> None:
    """Send this process a signal when its next UDP claim comes to a moment."""
    InterruptedSocket.moment = moment
    InterruptedSocket.number = number
    socket.socket = InterruptedSocket  # type: ignore[misc]


class InterruptedSocket(socket.socket):
    """A socket that sends its own process a signal at a moment of a claim."""

    moment: ClassVar[str]
    number: ClassVar[int]

    def _at(self, moment: str) -> None:
        cls = type(self)
        if moment == cls.moment:
            cls.moment = ""
            os.kill(os.getpid(), cls.number)

    def bind(self, address: Any) -> None:
        self._at("before bind")
        super().bind(address)
        self._at("bound")

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        lock = (level, option) == (uapi.SOL_SOCKET, uapi.SO_REUSEADDR) and self.getsockname()[1]
        if lock and not value[0]:
            self._at("before lock")
        super().setsockopt(level, option, *value)
        if lock:
            self._at("unlocked" if value[0] else "locked")

    def getsockopt(self, level: int, option: int, *size: Any) -> Any:
        # claim() asks for it when the lookup is yet to be made.
        if (level, option) == (uapi.SOL_SOCKET, uapi.SO_COOKIE):
            self._at("before lookup")
        return super().getsockopt(level, option, *size)

    def connect(self, address: Any) -> None:
        self._at("before connect")
        super().connect(address)
        self._at("connected")
