"""trio: what goes beyond the checks of all integrations."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

import connectx
from connectx.integrations import trio
from tests.dialer.drivers import nothing_open
from tests.integrations import frame
from tests.integrations.checks import HOST_6, PORT, SOURCES

if TYPE_CHECKING:
    from connectx.sandbox.networks import Network


@pytest.fixture(autouse=True)
def _threads(trio_threads: None) -> None:
    del trio_threads


def test_an_error_is_trios_with_ours_as_its_cause(web: str) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match=f"all attempts to connect to {web}:81 failed") as caught:
            await trio.open_tcp_stream(web, 81)
        assert caught.value.errno == errno.ECONNREFUSED
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    frame.run("trio", scenario)


def test_the_error_names_an_ipv6_address_as_trio_does(network: Network) -> None:
    network.add_address(HOST_6)

    async def scenario() -> None:
        with pytest.raises(OSError, match=rf"connect to \[{HOST_6}\]:81 failed"):
            await trio.open_tcp_stream(HOST_6, 81)

    frame.run("trio", scenario)


def test_a_name_that_is_none(network: Network) -> None:
    del network

    async def scenario() -> None:
        with pytest.raises(socket.gaierror):
            await trio.open_tcp_stream("nowhere", 80)

    frame.run("trio", scenario)


@pytest.mark.parametrize("delay", [None, 0.1])
def test_arguments(web: str, delay: float | None) -> None:
    async def scenario() -> None:
        stream = await trio.open_tcp_stream(
            web.encode(),
            80,
            local_address=SOURCES[1],
            happy_eyeballs_delay=delay,
            sources=SOURCES,
            ports=(PORT, PORT),
        )
        async with stream:
            assert stream.socket.getsockname() == (SOURCES[1], PORT)
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    frame.run("trio", scenario)


def test_a_stream_reports_its_end(web: str) -> None:
    dialer = connectx.Dialer(SOURCES)

    async def scenario() -> None:
        async with await trio.open_tcp_stream(web, 80, dialer=dialer):
            # None is looked for.
            assert not dialer._policy.unreported.sockets
            assert not nothing_open(dialer._policy)
        assert nothing_open(dialer._policy)

    frame.run("trio", scenario)


def test_a_local_address_that_is_not_the_dialers(web: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="none of the dialer's sources"):
            await trio.open_tcp_stream(web, 80, local_address=SOURCES[1], sources=[SOURCES[0]])

    frame.run("trio", scenario)
