"""requests: sessions, and adapters that are mounted in the library's own session."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import requests

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


class _Client(Client):
    def __init__(self, session: Any, options: Options) -> None:
        self.session = session
        self.options = options

    async def ask(self, server: Server) -> str:
        options = self.options
        timeout = (options.timeout, 30)
        proxies = {"http": options.proxy, "https": options.proxy} if options.proxy else None
        response = self.session.get(
            server.url, timeout=timeout, verify=options.ca or True, proxies=proxies
        )
        text: str = response.text
        return text

    async def close(self) -> None:
        self.session.close()


class _Adapter(Adapter):
    plain = "requests"
    errors = (requests.ConnectionError, requests.Timeout)
    tls_errors = (requests.exceptions.SSLError,)

    def original(self, library: ModuleType, name: str) -> Any:
        return getattr(library.adapters if name == "HTTPAdapter" else library, name)

    def copies(self, client: Client) -> Sequence[Client]:
        assert isinstance(client, _Client)
        session, options = client.session, client.options
        made = [copy.deepcopy(session), pickle.loads(pickle.dumps(session))]  # noqa: S301 - our own
        return [_Client(each, options) for each in (*made, copy.copy(session))]


class _Session(_Adapter):
    name = "requests"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library.Session(**options.given), options)


class _Mounted(_Adapter):
    name = "requests' HTTPAdapter"

    def client(self, library: ModuleType, options: Options) -> Client:
        session = requests.Session()
        kind = library.HTTPAdapter if library is not requests else requests.adapters.HTTPAdapter
        for scheme in ("http://", "https://"):
            session.mount(scheme, kind(pool_maxsize=options.pool, **options.given))
        return _Client(session, options)


ADAPTERS = [_Session(), _Mounted()]
