"""Names with several addresses: who is tried when, who wins, and what is left of the others."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from connectx import PortsExhausted, aio
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.aio.conftest import Run
from tests.aio.here import HIGH, LOW, PORTS, SILENT, client_sockets, descriptors, names, silent
from tests.kernel.raw import FIRST

#: A name's call by either: create_connection() itself, or a dialer's.
CALLS: dict[str, Callable[..., Any]] = {
    "create_connection": aio.create_connection,
    "Dialer": lambda *args, **keywords: aio.Dialer(["127.0.0.1", "::1"]).create_connection(
        *args, **keywords
    ),
}


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return CALLS[request.param]


@pytest.fixture
def half(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """A black hole on IPv6, and a listener on IPv4, on the same port."""
    network.port_range(LOW, HIGH)
    silent(closing, "::1")
    servers.listen("127.0.0.1", SILENT)
    servers.listen("127.0.0.1", FIRST)
    servers.listen("::1", FIRST)


def test_the_first_address_wins_if_it_answers(
    run: Run, half: None, call: Callable[..., Any]
) -> None:
    del half

    async def scenario() -> None:
        for hosts in (("::1", "127.0.0.1"), ("127.0.0.1", "::1")):
            with names(both=hosts), await call(("both", FIRST)) as sock:
                assert sock.getpeername()[0] == hosts[0]

    run(scenario)


def test_the_second_family_wins_after_the_delay(
    run: Run, half: None, call: Callable[..., Any]
) -> None:
    del half

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1")):
            before = descriptors()
            begun = time.monotonic()
            sock = await call(("both", SILENT), happy_eyeballs_delay=0.1)
            assert time.monotonic() - begun >= 0.09
            assert sock.getpeername()[0] == "127.0.0.1"
            # Nothing is left of the other, by now and not by and by.
            assert len(descriptors()) == len(before) + 1
            assert [destination for _, _, destination in client_sockets()] == [SILENT]
            sock.close()

    run(scenario)


def test_a_refusal_brings_the_next_at_once(
    run: Run, network: Network, servers: Servers, call: Callable[..., Any]
) -> None:
    network.port_range(LOW, HIGH)
    servers.listen("127.0.0.1", 9100)

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1")):
            async with asyncio.timeout(limits.LIMIT):
                with await call(("both", 9100), happy_eyeballs_delay=60) as sock:
                    assert sock.getpeername()[0] == "127.0.0.1"

    run(scenario)


def test_without_a_delay_one_comes_after_the_other(
    run: Run, half: None, call: Callable[..., Any]
) -> None:
    del half

    async def scenario() -> None:
        with (
            names(both=("::1", "127.0.0.1")),
            await call(("both", SILENT), 0.5, happy_eyeballs_delay=None) as sock,
        ):
            assert sock.getpeername()[0] == "127.0.0.1"

    run(scenario)


def test_the_families_take_turns(run: Run, network: Network, closing: contextlib.ExitStack) -> None:
    """RFC 8305, section 4: beginning with the first one's."""
    network.port_range(LOW, HIGH)
    del closing

    async def scenario() -> None:
        hosts = ("::1", "::1", "::1", "127.0.0.1", "127.0.0.2")
        with names(many=hosts), pytest.raises(ExceptionGroup) as caught:
            await aio.Dialer().create_connection(("many", 9100), all_errors=True)
        assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError] * 5

        tried: list[str] = []
        original = socket.socket.connect

        with pytest.MonkeyPatch.context() as patch:

            def connect(sock: socket.socket, address: Any) -> None:
                tried.append(address[0])
                original(sock, address)

            patch.setattr(socket.socket, "connect", connect, raising=False)
            with names(many=hosts), pytest.raises(ConnectionRefusedError):
                await aio.create_connection(("many", 9100))
        assert tried == ["::1", "127.0.0.1", "::1", "127.0.0.2", "::1"]

    run(scenario)


def test_all_that_went_wrong(run: Run, network: Network, call: Callable[..., Any]) -> None:
    network.port_range(LOW, HIGH)

    async def scenario() -> None:
        with names(both=("127.0.0.1", "::1"), one=("127.0.0.1",), none=()):
            with pytest.raises(ConnectionRefusedError):
                await call(("both", 9100))
            with pytest.raises(ExceptionGroup) as caught:
                await call(("both", 9100), all_errors=True)
            assert len(caught.value.exceptions) == 2
            for host in ("one", "127.0.0.1"):
                with names(**{host: ("127.0.0.1",)}), pytest.raises(ExceptionGroup) as caught:
                    await call((host, 9100), all_errors=True)
                assert len(caught.value.exceptions) == 1
            with pytest.raises(OSError, match="empty list"):
                await call(("none", 9100))

    run(scenario)
    assert client_sockets() == []


def test_other_errors_are_not_swallowed(run: Run, half: None) -> None:
    """What is no OSError is a mistake, whichever attempt meets with it."""
    del half

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1")), pytest.raises(ValueError, match="luck"):
            await aio.create_connection(("both", FIRST), strategy="luck")  # type: ignore[arg-type] # a name that no type checker knows

    run(scenario)


def test_both_at_once(run: Run, half: None) -> None:
    """The loser is closed, also if it was connected in the same turn of the loop."""
    del half

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1")):
            before = descriptors()
            for _ in range(200):
                with await aio.create_connection(("both", FIRST), happy_eyeballs_delay=0) as sock:
                    assert len(descriptors()) == len(before) + 1
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert descriptors() == before

    run(scenario)
    assert client_sockets() == []


def test_ports_of_one_family_run_out(
    run: Run, half: None, closing: contextlib.ExitStack, call: Callable[..., Any]
) -> None:
    del half

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1")):
            found = [closing.enter_context(await call(("both", FIRST))) for _ in range(16)]
            hosts = [sock.getpeername()[0] for sock in found]
            assert sorted(hosts) == ["127.0.0.1"] * len(PORTS) + ["::1"] * len(PORTS)
            with pytest.raises(PortsExhausted):
                await call(("both", FIRST))

    run(scenario)


def test_a_dialer_tries_the_families_that_it_has_sources_for(run: Run, half: None) -> None:
    del half

    async def scenario() -> None:
        with names(both=("::1", "127.0.0.1"), six=("::1",)):
            four = aio.Dialer(["127.0.0.2"])
            # Nothing is lost to the black hole.
            async with asyncio.timeout(limits.LIMIT):
                with await four.create_connection(
                    ("both", SILENT), happy_eyeballs_delay=60
                ) as sock:
                    assert sock.getsockname()[0] == "127.0.0.2"
            with pytest.raises(OSError, match="IPv6") as caught:
                await four.create_connection(("six", SILENT))
            assert caught.value.errno == errno.EAFNOSUPPORT

    run(scenario)


def test_a_source_decides_for_its_family(run: Run, half: None) -> None:
    del half

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with names(both=("::1", "127.0.0.1")):
            with await aio.create_connection(("both", FIRST), None, ("", 0)) as sock:
                assert sock.getpeername()[0] == "::1"
            # The other family has no such source, which a resolver is asked about.
            with await aio.create_connection(("both", FIRST), None, ("127.0.0.2", 0)) as sock:
                assert sock.getpeername()[0] == "127.0.0.1"
        await loop.shutdown_default_executor()

    run(scenario)
