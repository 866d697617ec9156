"""UDP claims on model sockets, in threads of which one at a time may go on.

The library's own function runs, and stops before each of its system calls.
"""

import contextlib
import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import pytest

from connectx._connect import udp_connect
from connectx._connect.udp_connect import Contested
from connectx.addresses import V4_MAPPED, V4_MAPPED_TEXT, Address, Endpoint, packed
from connectx.linux import socket_dump, uapi
from connectx.linux.sock_diag import SocketRecord
from connectx.linux.socket_dump import Filter
from tests import limits
from tests._connect.udp_model import HERE, HOST, LO, PORT, ModelSocket, UdpModel

FIRST, SECOND = Endpoint(HOST, 9000), Endpoint(HOST, 9001)

_HOST: Final = packed(HOST) or b""

Claim = Callable[..., None]


class Rival(NamedTuple):
    """Who claims the port.

    device, processor, mapped: What is set on the socket, as in `ModelSocket`.
    runs_on: The processor that the process runs on.
    devices: The devices there are besides the loopback device.
    """

    claim: Claim
    destination: Endpoint = FIRST
    device: int = 0
    processor: int = -1
    mapped: bool = False
    runs_on: int = HERE
    devices: tuple[int, ...] = ()

    def __repr__(self) -> str:
        asks = "asks" if getattr(self.claim, "keywords", {}).get("beside_services") else "takes any"
        return f"{asks}, {self.device}, {self.processor}, {'mapped' if self.mapped else 'IPv4'}"


class Killed(BaseException):
    """The process ends here."""


class Record(NamedTuple):
    """What a lookup tells of a socket."""

    cookie: bytes
    state: int


class Process:
    """A thread that makes one claim, a system call at a time, and so stands for a process.

    It is the socket, the lookup and the netlink socket of the claim as well.

    outcome: "connected", or why not; "" before the end.
    """

    _running: "Process"
    connected: Sequence[SocketRecord] = ()
    proto = 0

    def __init__(self, kernel: UdpModel, rival: Rival) -> None:
        self.outcome = ""
        self.rival = rival
        self.family = uapi.AF_INET6 if rival.mapped else uapi.AF_INET
        self.model = ModelSocket(rival.device, rival.processor, rival.mapped)
        self.twins: list[ModelSocket] = []
        self.kernel = kernel
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._await_arrival()

    @classmethod
    def running(cls) -> "Process":
        """The only one that may go on."""
        return cls._running

    def step(self) -> None:
        """Let it make its next system call."""
        if not self.outcome:
            Process._running = self
            self._go.release()
            self._await_arrival()

    def _await_arrival(self) -> None:
        if not self._arrived.acquire(timeout=limits.LIMIT):
            raise TimeoutError("the contender has not arrived at its next system call")

    def kill(self) -> None:
        """End it before its next system call; the kernel closes its sockets."""
        self._killed = True
        self.step()
        for sock in (self.model, *self.twins):
            self.kernel.close(sock)

    def finish(self) -> None:
        while not self.outcome:
            self.step()
        limits.join(self._thread)

    def _run(self) -> None:
        outcome = "killed"
        try:
            with contextlib.suppress(Killed):
                self.wait()
                outcome = self._attempt()
        finally:
            self.outcome = outcome
            self._arrived.release()

    def _attempt(self) -> str:
        host = V4_MAPPED_TEXT * self.rival.mapped + HOST
        destination = (V4_MAPPED_TEXT * self.rival.mapped + HOST, self.rival.destination.port)
        devices = [each.to_bytes(4, sys.byteorder) for each in self.rival.devices]
        try:
            self.rival.claim(
                self,
                self,
                self,
                (host, PORT),
                destination,
                devices=None if self.rival.device else devices,
            )
        except Contested as contest:
            self.wait()
            self.kernel.close(self.model)
            return "occupied" if contest.connected else "overtaken"
        except OSError as error:
            # As bind() leaves it.
            return "stuck" if self.model in self.kernel.bound else errno.errorcode[error.errno or 0]
        return "connected"

    def wait(self) -> None:
        self._arrived.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    # As a socket. Nothing that comes before bind() needs waiting for.

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE):
            return
        assert level == uapi.SOL_SOCKET
        if self.model in self.kernel.bound:
            self.wait()
        if option == uapi.SO_INCOMING_CPU:
            self.model.processor = value
        else:
            assert option == uapi.SO_REUSEADDR
            self.model.reuseaddr = bool(value)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        assert level == uapi.SOL_SOCKET
        return {
            uapi.SO_INCOMING_CPU: self.model.processor,
            uapi.SO_BINDTOIFINDEX: self.model.device,
            uapi.SO_MEMINFO: b"",
            uapi.SO_COOKIE: cookie(self.model),
            uapi.SO_NETNS_COOKIE: bytes(size),
        }[option]

    def bind(self, _: Address) -> None:
        self.wait()
        self.kernel.bind(self.model)

    def connect(self, _: Address) -> None:
        self.wait()
        self.kernel.connect(self.model, self.rival.destination)

    # As a lookup.

    def shows(self, _: Any, port: int, cookie: bytes, device: bytes | None = None) -> bool:
        record = self.find_record(None, port, device)
        return record is not None and record.cookie == cookie

    def is_service(self, _: Any, port: int, device: bytes | None = None) -> bool:
        record = self.find_record(None, port, device)
        return record is not None and record.state != uapi.TCP_ESTABLISHED

    def find_record(self, _: Any, port: int, device: bytes | None = None) -> Record | None:
        assert port == PORT
        self.wait()
        index = self.rival.device or LO
        if device is not None:
            index = int.from_bytes(device, sys.byteorder)
        found = self.kernel.lookup(self.rival.destination, index, self.rival.runs_on)
        if found is None:
            return None
        connected = found.destination is not None
        return Record(cookie(found), uapi.TCP_ESTABLISHED if connected else uapi.TCP_CLOSE)

    # As a netlink socket.

    def records(self, wanted: Filter) -> list[SocketRecord]:
        assert (wanted.source, wanted.source_port) == (_HOST, PORT)
        self.wait()
        connected = wanted.states == 1 << uapi.TCP_ESTABLISHED
        assert connected or wanted.states == 1 << uapi.TCP_CLOSE
        to = self.rival.destination if connected else None
        assert wanted.destination_port == (to.port if to else 0)
        return [
            SocketRecord(
                uapi.AF_INET6 if sock.mapped else uapi.AF_INET,
                uapi.TCP_ESTABLISHED if connected else uapi.TCP_CLOSE,
                V4_MAPPED * sock.mapped + _HOST,
                PORT,
                b"",
                wanted.destination_port,
                sock.device,
                cookie(sock),
                0,
                0,
            )
            for sock in self.kernel.listed(connected_to=to)
        ]


class Twin:
    """Another socket of the process that runs."""

    def __init__(self, family: int, kind: int, proto: int) -> None:
        assert (family, kind, proto) == (uapi.AF_INET, socket.SOCK_DGRAM, 0)
        self._process = Process.running()
        self._model = ModelSocket()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if (level, option) == (uapi.SOL_SOCKET, uapi.SO_REUSEADDR):
            self._model.reuseaddr = bool(value)
        elif (level, option) == (uapi.SOL_SOCKET, uapi.SO_BINDTOIFINDEX):
            self._model.device = value
        else:
            assert (level, option) == (uapi.IPPROTO_IP, uapi.IP_FREEBIND)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == uapi.SOL_SOCKET
        return {uapi.SO_COOKIE: cookie(self._model), uapi.SO_NETNS_COOKIE: bytes(size)}[option]

    def bind(self, address: Address) -> None:
        assert address == (HOST, PORT)
        self._process.wait()
        self._process.kernel.bind(self._model)
        self._process.twins.append(self._model)

    def close(self) -> None:
        self._process.wait()
        self._process.kernel.close(self._model)


@contextlib.contextmanager
def models() -> Iterator[None]:
    """Have what a claim makes and reads by itself be of the model, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(udp_connect, "_Socket", Twin)
        patch.setattr(socket_dump, "records", Process.records)
        yield


def cookie(sock: object) -> bytes:
    return id(sock).to_bytes(8, "big")


@dataclass
class Race:
    """Processes that claim one port."""

    rivals: Sequence[Rival]
    kernel: UdpModel = field(default_factory=UdpModel)

    def run(self, schedule: Iterable[int], kill: tuple[int, int] | None = None) -> list[str]:
        """Let processes go on in an order, then each to its end; the outcomes.

        kill: which process, and before which step of the schedule.
        """
        processes = [Process(self.kernel, rival) for rival in self.rivals]
        try:
            for number, which in enumerate(schedule):
                if kill and number == kill[1]:
                    processes[kill[0]].kill()
                processes[which].step()
        finally:
            for process in processes:
                process.finish()
        outcomes = [process.outcome for process in processes]
        assert "stuck" not in outcomes
        return outcomes

    def holders(self, destination: Endpoint) -> int:
        return sum(sock.destination == destination for sock in self.kernel.connected)

    def with_service(self, **options: Any) -> Self:
        """Bind a socket that receives, and shares the port."""
        self.kernel.bind(ModelSocket(reuseaddr=True, **options))
        return self
