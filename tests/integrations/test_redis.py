"""What is redis-py's own: URLs, clients of one connection, Unix sockets, and its retries."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import redis as library
from redis.backoff import NoBackoff
from redis.retry import Retry

import connectx
from connectx.integrations import redis
from connectx.integrations.redis import asyncio as redis_asyncio
from tests import limits
from tests.integrations import checks, frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from connectx.sandbox.networks import Network
    from tests.integrations.frame import Server


@pytest.fixture
def case(network: Network, tmp_path: Path) -> Iterator[checks.Case]:
    row = next(row for row in frame.rows() if row.name == "redis-py")
    with checks.Case(row, network, tmp_path) as made:
        yield made


@pytest.fixture
def server(case: checks.Case) -> Server:
    return case.server()


def source(info: Mapping[str, Any]) -> str:
    return str(info["addr"]).partition(":")[0]


@pytest.mark.parametrize("options", [{}, {"single_connection_client": True}])
def test_from_a_url(server: Server, options: dict[str, Any]) -> None:
    url = f"redis://{server.host}:{server.port}/0"
    options = {**options, "sources": [checks.SOURCES[1]]}
    with contextlib.closing(redis.from_url(url, **options)) as client:
        assert isinstance(client, redis.Redis)
        assert source(client.client_info()) == checks.SOURCES[1]

    async def scenario() -> str:
        async with redis_asyncio.from_url(url, **options) as client:
            assert isinstance(client, redis_asyncio.Redis)
            return source(await client.client_info())

    assert asyncio.run(limits.ended(scenario)) == checks.SOURCES[1]


def test_a_client_of_one_connection(server: Server) -> None:
    dialer = connectx.Dialer([checks.SOURCES[1]])
    client = redis.Redis(*server.address, single_connection_client=True, dialer=dialer)
    with contextlib.closing(client):
        assert source(client.client_info()) == checks.SOURCES[1]
    assert dialer.stats().opened == 1


def test_a_pool_has_its_own_dialer(server: Server) -> None:
    pool = redis.ConnectionPool(host=server.host, port=server.port, sources=[checks.SOURCES[1]])
    with contextlib.closing(pool), contextlib.closing(redis.Redis(connection_pool=pool)) as client:
        assert source(client.client_info()) == checks.SOURCES[1]
    with pytest.raises(TypeError, match="to the pool"):
        redis.Redis(connection_pool=pool, sources=[checks.SOURCES[0]])


def test_messages_of_a_channel(server: Server) -> None:
    dialer = connectx.Dialer([checks.SOURCES[1]])
    with contextlib.closing(redis.Redis(*server.address, dialer=dialer)) as client:
        subscribing: Any = client
        with subscribing.pubsub() as channel:
            channel.subscribe("news")
            channel.get_message(timeout=limits.LIMIT)
            assert client.publish("news", "hello") == 1
            assert [source(each) for each in client.client_list()] == [checks.SOURCES[1]] * 2
            message = channel.get_message(timeout=limits.LIMIT)
            assert message is not None
            assert message["data"] == b"hello"
        with client.pipeline() as pipeline:
            pipeline.set("key", "value")
            pipeline.get("key")
            assert pipeline.execute() == [True, b"value"]


def test_ports_are_tried_again_where_that_was_asked_for(server: Server) -> None:
    dialer = connectx.Dialer(ports=(checks.PORT, checks.PORT))
    with dialer.create_connection(server.address):
        client = redis.Redis(*server.address, dialer=dialer, retry=Retry(NoBackoff(), 2))
        with contextlib.closing(client), pytest.raises(library.ConnectionError) as raised:
            client.ping()
        found = checks.cause(raised.value)
        assert found is not None
        assert found.errno == errno.EADDRNOTAVAIL
        assert dialer.stats().attempts == 4


def test_unix_sockets_need_no_dialer(network: Network, tmp_path: Path) -> None:
    del network
    path = tmp_path / "socket"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    command += ["--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            limits.until(path.exists, "the socket")
            dialer = connectx.Dialer()
            with redis.Redis(unix_socket_path=str(path), dialer=dialer) as client:
                assert client.ping()
            assert dialer.stats().attempts == 0
        finally:
            process.kill()
