"""What cannot be right is refused when the dialer is made, before anything is opened."""

import contextlib
import errno
import math
import socket
from typing import Any

import pytest

import connectx
from connectx import aio
from connectx.sandbox.networks import Network
from tests.dialer.drivers import Driver
from tests.kernel.raw import FIRST

KINDS = {"blocking": connectx.Dialer, "asyncio": aio.Dialer}

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sources": "127.0.0.1"}, TypeError, "list of addresses"),
    ({"sources": [1]}, TypeError, "source is text"),
    ({"sources": ["nowhere"]}, ValueError, "not an IP address"),
    ({"sources": ["127.0.0.1/8"]}, ValueError, "host bits"),
    ({"sources": ["::1/200"]}, ValueError, "not an IP address"),
    ({"rotate": "luck"}, ValueError, "rotate is one of"),
    ({"rotate": None}, ValueError, "rotate is one of"),
    ({"strategy": "luck"}, ValueError, "luck"),
    ({"limit": 0}, ValueError, "limit is at least 1"),
    ({"limit": -1}, ValueError, "limit is at least 1"),
    ({"limit": True}, TypeError, "limit is a number"),
    ({"limit": "5"}, TypeError, "limit is a number"),
    ({"wait": -1}, ValueError, "wait is at least 0"),
    ({"wait": math.nan}, ValueError, "wait is at least 0"),
    ({"wait": math.inf}, ValueError, "wait is at least 0 and finite"),
    ({"wait": "1"}, TypeError, "wait is a number"),
    ({"ports": ()}, ValueError, "names no range"),
    ({"ports": (1, 2, 3)}, TypeError, "ports is a range"),
    ({"ports": (20000,)}, TypeError, "ports is a range"),
    ({"ports": (20009, 20000)}, ValueError, "low end first"),
    ({"ports": (0, 20000)}, ValueError, "within 1 to 65535"),
    ({"ports": (20000, 65536)}, ValueError, "within 1 to 65535"),
    ({"ports": [(20000, 20001), (20002, "x")]}, TypeError, "a port is an integer"),
    ({"ports": [(True, 20001)]}, TypeError, "a port is an integer"),
]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "arguments, error, match",
    WRONG,
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_of_a_dialer(
    kind: Any, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        kind(**arguments)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_right(kind: Any) -> None:
    kind()
    kind(iter(["127.0.0.1", "::1", "10.0.0.0/8", "2001:db8::/32"]))
    kind(None, [20000, 20001], wait=0, limit=1)
    kind(ports=[[20000, 20001], [20002, 20002]], wait=1)


def test_of_a_call(driver: Driver, listening: Network) -> None:
    del listening

    async def scenario() -> None:
        to = driver.dialer()
        for address in (("127.0.0.1", 70000), ("127.0.0.1", 0), ("127.0.0.1", -1)):
            with pytest.raises(ValueError, match="port"):
                await to.create_connection(address)
        with pytest.raises(TypeError):
            await to.create_connection((5, FIRST))
        with pytest.raises(ValueError, match="serves"):
            await to.create_connection(("127.0.0.1", FIRST), type=socket.SOCK_RAW)
        assert to.stats().attempts == 0

    driver.run(scenario)


def test_a_family_without_a_source(driver: Driver, listening: Network) -> None:
    del listening

    async def scenario() -> None:
        to = driver.dialer(["127.0.0.2"], wait=60)
        with driver.names(six=("::1",), both=("::1", "127.0.0.1"), nobody=()):
            for host in ("::1", "six"):
                with pytest.raises(OSError, match="IPv6") as caught:
                    await to.create_connection((host, FIRST))
                assert caught.value.errno == errno.EAFNOSUPPORT
            with await to.create_connection(("both", FIRST)) as sock:
                assert sock.getsockname()[0] == "127.0.0.2"
            with pytest.raises(OSError, match="empty list"):
                await to.create_connection(("nobody", FIRST))
        four_only = driver.dialer(["::1"])
        for host in ("127.0.0.1", "::ffff:127.0.0.1"):
            with pytest.raises(OSError, match="IPv4"):
                await four_only.create_connection((host, FIRST))

    driver.run(scenario)


def test_names(driver: Driver, listening: Network, closing: contextlib.ExitStack) -> None:
    """The addresses in turn, or in a race; what each met with, if asked for."""
    del listening

    async def scenario() -> None:
        to = driver.dialer()
        with driver.names(first=("127.0.0.1", "::1"), second=("127.0.0.9", "::1")):
            sock = closing.enter_context(await to.create_connection(("first", FIRST)))
            assert sock.getpeername()[0] == "127.0.0.1"
            with pytest.raises(ConnectionRefusedError):
                await to.create_connection(("second", 9300))
            with pytest.raises(ExceptionGroup) as caught:
                await to.create_connection(("second", 9300), all_errors=True)
            assert [type(error) for error in caught.value.exceptions] == [
                ConnectionRefusedError
            ] * 2

    driver.run(scenario)
