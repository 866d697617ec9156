"""A private network with sources, and a web server in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations import servers
from tests.integrations.checks import HOSTS, SOURCES
from tests.plugins.collections_and_loops import uvloop_has_its_pipe  # noqa: F401 -- a fixture

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network


@pytest.fixture
def web(network: Network, closing: contextlib.ExitStack) -> str:
    """The address of a web server, which answers with the address that a request comes from."""
    for address in (*SOURCES, *HOSTS):
        network.add_address(address)
    servers.start(closing, HOSTS[0], 80)
    return HOSTS[0]
