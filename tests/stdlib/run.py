"""Run CPython's own tests of network clients on connectx, and count the calls that it served.

usage: python -m tests.stdlib.run [MODULE...]

Each module is run twice in a private network namespace: as it is, and with connectx in the place
of socket.create_connection() and asyncio.open_connection(). What fails must fail in both. It
prints a line a module, and what failed; the exit status is 1 if connectx made a test fail, or
served no call of a module.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import socket
import sys
import unittest
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from test import support  # type: ignore[import-not-found] # has no types

import connectx
from connectx import aio
from connectx.sandbox.networks import experiment_network

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

#: The modules of CPython's tests; of test_socket those tests that connect by create_connection().
MODULES: Final[dict[str, tuple[str, ...]]] = {
    "test.test_ftplib": (),
    "test.test_httplib": (),
    "test.test_imaplib": (),
    "test.test_poplib": (),
    "test.test_smtplib": (),
    "test.test_socket": (
        "NetworkConnectionNoServer",
        "NetworkConnectionAttributesTest",
        "NetworkConnectionBehaviourTest",
        "ContextManagersTest",
    ),
    "test.test_urllib2_localnet": (),
    "test.test_xmlrpc": (),
    "test.test_asyncio.test_streams": (),
    "tests.stdlib.internals": (),
}

#: Tests of CPython, but not its own: they call connectx themselves, and none may fail.
_OURS: Final = "tests.stdlib.internals"

#: What aio.open_connection() takes, as asyncio's does.
_KEYWORDS: Final = {"limit", "ssl", "server_hostname", "ssl_handshake_timeout"}


class Counts:
    """Calls by what became of them."""

    def __init__(self) -> None:
        self.served = 0
        self.refused = 0
        self.left = 0

    def __str__(self) -> str:
        left = f", {self.left} left to asyncio" if self.left else ""
        return f"{self.served} connections, {self.refused} errors{left}"


class Run(NamedTuple):
    """What came of a module's tests: how many there were, and those that failed."""

    tests: int
    failed: frozenset[str]
    told: str


@contextlib.contextmanager
def through_connectx(counts: Counts) -> Iterator[None]:
    """Have connectx in the place of the standard library's functions."""
    create, connect = socket.create_connection, asyncio.open_connection

    @functools.wraps(create)
    def create_connection(*args: Any, **keywords: Any) -> socket.socket:
        try:
            sock = connectx.create_connection(*args, **keywords)
        except BaseException:
            counts.refused += 1
            raise
        counts.served += 1
        return sock

    async def open_connection(host: Any = None, port: Any = None, **keywords: Any) -> Any:
        if host is None or keywords.keys() - _KEYWORDS:
            # A socket of the caller's, or options of loop.create_connection().
            counts.left += 1
            return await connect(host, port, **keywords)
        try:
            streams = await aio.open_connection(host, port, **keywords)
        except BaseException:
            counts.refused += 1
            raise
        counts.served += 1
        return streams

    _replace(create, create_connection)
    _replace(connect, open_connection)
    try:
        yield
    finally:
        _replace(create_connection, create)
        _replace(open_connection, connect)


def _replace(
    old: Callable[..., Any] | Callable[..., Awaitable[Any]],
    new: Callable[..., Any] | Callable[..., Awaitable[Any]],
) -> None:
    """Put one function in the place of another wherever a module has it."""
    for module in tuple(sys.modules.values()):
        if module is None or module.__name__.startswith(("connectx", __name__)):
            continue
        for name, value in tuple(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def tests_of(module: str, classes: Iterable[str]) -> unittest.TestSuite:
    """Load a module's tests, or those of some of its classes."""
    loader = unittest.defaultTestLoader
    names = [f"{module}.{each}" for each in classes]
    return loader.loadTestsFromNames(names or [module])


def run(module: str) -> Run:
    """Run a module's tests."""
    told = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        suite = tests_of(module, MODULES[module])
        runner = unittest.TextTestRunner(stream=told, verbosity=0, buffer=True)
        result = runner.run(suite)
    bad = [test.id() for test, _ in (*result.failures, *result.errors)]
    bad += [test.id() for test in result.unexpectedSuccesses]
    return Run(result.testsRun, frozenset(bad), told.getvalue())


def main(*modules: str) -> int:
    """Run the tests of some modules, or of all."""
    # No network but the loopback, so nothing of the Internet.
    support.use_resources = []
    logging.disable(logging.CRITICAL)
    status = 0
    with experiment_network():
        for module in modules or MODULES:
            if module == _OURS:
                only = run(module)
                print(f"{module}: {only.tests} tests, {len(only.failed)} failed")  # noqa: T201
                if only.failed:
                    print(only.told)  # noqa: T201
                    status = 1
                continue
            plain = run(module)
            counts = Counts()
            with through_connectx(counts):
                ours = run(module)
            worse = ours.failed - plain.failed
            print(f"{module}: {ours.tests} tests, {counts}, {len(worse)} failed")  # noqa: T201
            if plain.failed:
                print(f"  without connectx fail, too: {', '.join(sorted(plain.failed))}")  # noqa: T201
            if worse:
                print(ours.told)  # noqa: T201
            if worse or not counts.served:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
