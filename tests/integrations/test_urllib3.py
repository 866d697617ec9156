"""urllib3: what goes beyond the checks of all integrations."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import urllib3 as plain
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
)

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import urllib3
from tests.integrations import servers
from tests.integrations.checks import HOSTS, PORT, SOURCES

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network


def source(answer: Any) -> str:
    """Where a request came from."""
    text: str = answer.data.decode()
    return text.split(maxsplit=1)[0]


def number(answer: Any) -> str:
    """Which of the server's connections it came by."""
    text: str = answer.data.decode()
    return text.split()[2]


class TestRetries:
    @pytest.fixture
    def full(self, web: str, closing: contextlib.ExitStack) -> connectx.Dialer:
        """A dialer without a port toward the web server."""
        dialer = connectx.Dialer(ports=(PORT, PORT))
        closing.enter_context(dialer.create_connection((web, 80)))
        return dialer

    def test_only_what_was_asked_for(self, web: str, full: connectx.Dialer) -> None:
        with pytest.raises(MaxRetryError) as caught:
            urllib3.PoolManager(dialer=full).request("GET", f"http://{web}/")
        assert isinstance(caught.value.reason, NewConnectionError)
        assert isinstance(caught.value.reason.__cause__, PortsExhausted)
        assert full.stats().attempts == 2

    @pytest.mark.parametrize("retries", [2, plain.Retry(connect=2), plain.Retry(2, backoff_max=0)])
    def test_of_a_manager(self, web: str, full: connectx.Dialer, retries: Any) -> None:
        manager = urllib3.PoolManager(dialer=full, retries=retries)
        with pytest.raises(MaxRetryError):
            manager.request("GET", f"http://{web}/")
        assert full.stats().attempts == 1 + 3

    def test_of_a_request(self, web: str, full: connectx.Dialer) -> None:
        manager = urllib3.PoolManager(dialer=full)
        with pytest.raises(MaxRetryError):
            manager.request("GET", f"http://{web}/", retries=1)
        with pytest.raises(NewConnectionError):
            manager.request("GET", f"http://{web}/", retries=False)
        assert full.stats().attempts == 1 + 2 + 1

    def test_of_a_pool(self, web: str, full: connectx.Dialer) -> None:
        for retries, attempts in ((None, 1), (1, 2)):
            before = full.stats().attempts
            pool = urllib3.HTTPConnectionPool(web, dialer=full, retries=retries)
            with pytest.raises(MaxRetryError):
                pool.request("GET", "/")
            assert full.stats().attempts - before == attempts

    def test_of_a_proxy(self, web: str, full: connectx.Dialer) -> None:
        manager = urllib3.ProxyManager(f"http://{web}/", dialer=full)
        with pytest.raises(MaxRetryError):
            manager.request("GET", f"http://{HOSTS[1]}/")
        assert full.stats().attempts == 2

    def test_other_errors_are_tried_again_as_ever(self, web: str) -> None:
        dialer = connectx.Dialer()
        with pytest.raises(MaxRetryError):
            urllib3.PoolManager(dialer=dialer).request("GET", f"http://{web}:81/")
        assert dialer.stats().failures == {"ECONNREFUSED": 4}


class TestErrors:
    def test_too_late(self, web: str, closing: contextlib.ExitStack) -> None:
        servers.silence(closing, web, 81)
        pool = urllib3.HTTPConnectionPool(web, 81, timeout=0.1, retries=False)
        with pytest.raises(ConnectTimeoutError, match=r"timed out. \(connect timeout=0.1\)"):
            pool.request("GET", "/")

    def test_a_name_that_is_none(self, network: Network) -> None:
        del network
        with pytest.raises(NameResolutionError, match="nowhere"):
            urllib3.HTTPConnectionPool("nowhere", retries=False).request("GET", "/")

    def test_a_name_that_cannot_be_one(self, network: Network) -> None:
        del network
        with pytest.raises(LocationParseError, match="label empty or too long"):
            urllib3.HTTPConnectionPool("a" * 70, retries=False).request("GET", "/")

    def test_a_source_that_is_not_the_dialers(self, web: str) -> None:
        manager = urllib3.PoolManager(sources=[SOURCES[0]], source_address=(SOURCES[1], 0))
        with pytest.raises(ValueError, match="none of the dialer's sources"):
            manager.request("GET", f"http://{web}/")


class TestPools:
    def test_two_dialers_share_none(self, web: str) -> None:
        dialers = [connectx.Dialer([each]) for each in SOURCES]
        manager = urllib3.PoolManager(dialer=dialers[0])
        for host, dialer in zip(SOURCES, dialers, strict=True):
            for _ in range(2):
                pool = manager.connection_from_host(web, 80, pool_kwargs={"dialer": dialer})
                assert source(pool.request("GET", "/")) == host
        assert len(manager.pools) == 2
        assert source(manager.request("GET", f"http://{web}/")) == SOURCES[0]
        assert len(manager.pools) == 2

    def test_a_source_address_has_its_own(self, web: str) -> None:
        manager = urllib3.PoolManager(sources=SOURCES)
        for host in SOURCES * 2:
            pool = manager.connection_from_host(web, 80, pool_kwargs={"source_address": (host, 0)})
            assert source(pool.request("GET", "/")) == host

    def test_of_a_class_of_the_programs_own(self, web: str) -> None:
        class Connection(plain.connection.HTTPConnection):
            mark = "mine"

        class Pool(plain.HTTPConnectionPool):
            ConnectionCls = Connection

        manager = plain.PoolManager()
        manager.pool_classes_by_scheme = {"http": Pool}
        urllib3.manage(manager, connectx.Dialer([SOURCES[1]]))
        assert source(manager.request("GET", f"http://{web}/")) == SOURCES[1]
        pool = manager.connection_from_host(web, 80)
        assert isinstance(pool, Pool)
        assert issubclass(pool.ConnectionCls, Connection)
        # urllib3's own stay what they are.
        assert Pool.ConnectionCls is Connection
        assert plain.PoolManager().pool_classes_by_scheme["http"] is plain.HTTPConnectionPool

    def test_functions(self, web: str) -> None:
        pool = urllib3.connection_from_url(f"http://{web}/", sources=[SOURCES[1]])
        assert source(pool.request("GET", "/")) == SOURCES[1]
        assert urllib3.connection_from_url("https://example.org/").port == 443
        manager = urllib3.proxy_from_url(f"http://{web}/", sources=[SOURCES[1]])
        assert source(manager.request("GET", f"http://{HOSTS[1]}/")) == SOURCES[1]

    def test_what_is_logged(self, web: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "urllib3.connectionpool")
        urllib3.PoolManager().request("GET", f"http://{web}/")
        assert f"Starting new HTTP connection (1): {web}:80" in caplog.messages


class TestTurns:
    """Of sources, where the dialer has them take turns."""

    def test_with_less_room_than_sources_each_connects_anew(self, web: str) -> None:
        manager = urllib3.PoolManager(dialer=connectx.Dialer(SOURCES, rotate="round-robin"))
        answers = [manager.request("GET", f"http://{web}/") for _ in range(6)]
        assert [source(each) for each in answers[2:]] == [source(each) for each in answers[:4]]
        assert {source(each) for each in answers} == set(SOURCES)
        assert len({number(each) for each in answers}) == 6

    def test_of_a_prefix_as_many_as_there_is_room_for(self, web: str) -> None:
        dialer = connectx.Dialer(["127.2.0.0/16"], rotate="round-robin")
        manager = urllib3.PoolManager(dialer=dialer, maxsize=3)
        answers = [manager.request("GET", f"http://{web}/") for _ in range(9)]
        numbers = [number(each) for each in answers]
        assert numbers[:3] == numbers[3:6] == numbers[6:]
        assert len(set(numbers)) == 3

    def test_connections_in_use_count(self, web: str) -> None:
        dialer = connectx.Dialer(SOURCES, rotate="round-robin")
        pool = urllib3.HTTPConnectionPool(web, maxsize=4, dialer=dialer)
        first = pool.request("GET", "/", preload_content=False)
        second = pool.request("GET", "/")
        # One source's connection is at work, so it is the other one's turn again.
        third = pool.request("GET", "/")
        assert number(third) == number(second)
        first.drain_conn()
        first.release_conn()
        assert dialer.stats().opened == 2

    @pytest.mark.parametrize("rotate", ["most-free", "sticky"])
    def test_only_then(self, web: str, rotate: Any) -> None:
        manager = urllib3.PoolManager(dialer=connectx.Dialer(SOURCES, rotate=rotate), maxsize=4)
        answers = [manager.request("GET", f"http://{web}/") for _ in range(6)]
        assert len({number(each) for each in answers}) == 1

    def test_a_connection_that_the_server_has_closed_is_made_again(self, web: str) -> None:
        dialer = connectx.Dialer(SOURCES, rotate="round-robin")
        pool = urllib3.HTTPConnectionPool(web, maxsize=2, dialer=dialer)
        for _ in range(4):
            pool.request("GET", "/", headers={"Connection": "close"})
        assert dialer.stats().opened == 4
        pool.close()
