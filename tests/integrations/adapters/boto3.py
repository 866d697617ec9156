"""boto3: what is read from a bucket is who asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import botocore.exceptions
from botocore.config import Config

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


def keywords(options: Options, server: Server) -> dict[str, Any]:
    """What a client is made with."""
    retries = {} if options.retries else {"retries": {"max_attempts": 0}}
    config = Config(
        connect_timeout=options.timeout or 30,
        max_pool_connections=options.pool,
        proxies={"http": options.proxy, "https": options.proxy} if options.proxy else None,
        s3={"addressing_style": "path"},
        **retries,
    )
    return {
        "endpoint_url": server.url,
        "region_name": "nowhere",
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "verify": options.ca or True,
        "config": config,
        **options.given,
    }


class S3Client(Client):
    """Clients of S3, one for each server."""

    def __init__(self, library: ModuleType, options: Options) -> None:
        self.library = library
        self.options = options
        self._clients: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._clients:
            self._clients[server] = self.make(server)
        body: bytes = self._clients[server].get_object(Bucket="bucket", Key="key")["Body"].read()
        return body.decode()

    async def close(self) -> None:
        for each in self._clients.values():
            each.close()

    def make(self, server: Server) -> Any:
        """Make a client for a server."""
        return self.library.client("s3", **keywords(self.options, server))


class _Resource(S3Client):
    def make(self, server: Server) -> Any:
        return self.library.resource("s3", **keywords(self.options, server)).meta.client


class _Session(S3Client):
    def make(self, server: Server) -> Any:
        made = keywords(self.options, server)
        session = self.library.Session(**{key: made.pop(key) for key in self.options.given})
        return session.resource("s3", **made).meta.client


class Boto(Adapter):
    """What the rows have in common."""

    errors = (botocore.exceptions.BotoCoreError,)
    tls_errors = (botocore.exceptions.SSLError,)
    lacks: ClassVar = {"copies": "a client cannot be copied"}


class _Boto3(Boto):
    plain = "boto3"

    def __init__(self, name: str, kind: type[S3Client]) -> None:
        self.name = name
        self.client = kind  # type: ignore[method-assign] # makes one


ADAPTERS = [
    _Boto3("boto3", S3Client),
    _Boto3("boto3's resources", _Resource),
    _Boto3("boto3's Session", _Session),
]
