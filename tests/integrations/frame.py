"""What an integration gives to the conformance suite, and how the suite finds and runs it.

For each module of connectx.integrations there is one of the same name in the adapters beside this
file, with a list ADAPTERS. An `Adapter` is a row of the table: a library, and how a request is made
with it. Adding a library takes nothing else.

Adapters are written with `async def`, those of libraries that block too: they never wait, and `run`
has no loop for them. So each check is written once.
"""

from __future__ import annotations

import importlib
import pkgutil
import ssl
import tempfile
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

import anyio.lowlevel

import connectx.integrations
from tests.integrations import http_server, servers

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from types import ModuleType

    import trustme

T = TypeVar("T")

#: How the adapters of a row are run: without a loop, or under one.
BLOCKING: Final = "blocking"
LOOPS: Final = ("asyncio", "uvloop", "trio")


class Peer(NamedTuple):
    """A client as a server sees it: its address, and how many connections there were before."""

    host: str
    port: int
    number: int


class Server(NamedTuple):
    """A server to ask."""

    host: str
    port: int
    tls: bool = False

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.tls}://{host}:{self.port}/"


@dataclass(frozen=True)
class Options:
    """What a client is made with.

    Attributes:
        given: dialer=, sources= and ports=; nothing for the library as it is.
        timeout: Seconds for connecting.
        ca: A file with the certificates to trust.
        proxy: The address of an HTTP proxy.
        pool: How many idle connections to keep.
        retries: Whether the library may try again as it does by default.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = 30.0
    ca: str | None = None
    proxy: str | None = None
    pool: int = 1
    retries: bool = True


class Client(AbstractAsyncContextManager["Client"]):
    """A client made with a library: it keeps its connections until it is closed."""

    async def ask(self, server: Server) -> str:
        """Ask a server who is asking, over a new connection or one that is idle."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close every connection."""
        raise NotImplementedError

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Adapter:
    """A row of the table: a library, and how requests are made with it.

    Attributes:
        name: The row's.
        plain: The name of the library's own module.
        backends: How it runs.
        errors: What the library raises where there is no connection.
        tls_errors: What it raises where the certificate is not to be trusted.
        lacks: Checks that make no sense here, and why; it is said under the table.
    """

    name: str
    plain: ClassVar[str]
    backends: ClassVar[Sequence[str]] = (BLOCKING,)
    errors: ClassVar[tuple[type[BaseException], ...]]
    tls_errors: ClassVar[tuple[type[BaseException], ...]]
    lacks: ClassVar[Mapping[str, str]] = {}

    def client(self, library: ModuleType, options: Options) -> Client:
        """Make a client with a library's names: its own module's, or the integration's."""
        raise NotImplementedError

    def original(self, library: ModuleType, name: str) -> Any:
        """Return what one of the integration's names is in the library."""
        return getattr(library, name)

    def copies(self, client: Client) -> Sequence[Client]:
        """Return copies of a client, made in each way that the library supports."""
        raise NotImplementedError

    def begin(
        self, stack: contextlib.ExitStack, server: Server, issued: trustme.LeafCert | None = None
    ) -> None:
        """Start a server, until the stack is closed; issued: its certificate, for TLS."""
        context = None
        if issued:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            issued.configure_cert(context)
        servers.start(stack, *server.address, self.serve, context)

    def serve(self, listener: Any, tls: ssl.SSLContext | None, pipe: Any) -> None:
        """Be the server, in a process of its own: answer with a `Peer` as text."""
        http_server.answer(listener, tls, pipe)


class ProgramAdapter(Adapter):
    """A row whose server is a program."""

    def program(self, server: Server, pem: Path | None, directory: Path) -> Sequence[str]:
        """Return the server's command line.

        pem: its key and certificate, for TLS. directory: where it may write.
        """
        raise NotImplementedError

    def begin(
        self, stack: contextlib.ExitStack, server: Server, issued: trustme.LeafCert | None = None
    ) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pem = directory / "server.pem" if issued else None
        if issued:
            issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
        servers.run(stack, *server.address, self.program(server, pem, directory))


class Row(NamedTuple):
    """An adapter under one backend."""

    module: str
    adapter: Adapter
    backend: str

    @property
    def name(self) -> str:
        several = len(self.adapter.backends) > 1
        return f"{self.adapter.name} ({self.backend})" if several else self.adapter.name

    @property
    def integration(self) -> ModuleType:
        return importlib.import_module(f"connectx.integrations.{self.module}")

    @property
    def library(self) -> ModuleType:
        return importlib.import_module(self.adapter.plain)


def modules() -> list[str]:
    """The modules for libraries, of packages too."""
    prefix = f"{connectx.integrations.__name__}."
    found = pkgutil.walk_packages(connectx.integrations.__path__, prefix)
    names = (each.name.removeprefix(prefix) for each in found)
    return sorted(name for name in names if not name.startswith("_") and "._" not in name)


def adapters_of(module: str) -> Sequence[Adapter]:
    """The adapters for one module; that of a.b is in a_b."""
    name = module.replace(".", "_")
    found: Sequence[Adapter] = importlib.import_module(
        f"tests.integrations.adapters.{name}"
    ).ADAPTERS
    return found


def rows() -> list[Row]:
    """All rows of the table."""
    return [
        Row(module, adapter, backend)
        for module in modules()
        for adapter in adapters_of(module)
        for backend in adapter.backends
    ]


async def settle() -> None:
    """Have a loop close what it is to close: that takes uvloop one turn, and for TLS another."""
    for _ in range(3):
        await anyio.lowlevel.checkpoint()


def run(backend: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine under a backend."""
    if backend == BLOCKING:
        try:
            work().send(None)
        except StopIteration as end:
            value: T = end.value
            return value
        raise AssertionError("what blocks has nothing to wait for")
    name = "asyncio" if backend == "uvloop" else backend
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    return anyio.run(partial(work), backend=name, backend_options=options)
