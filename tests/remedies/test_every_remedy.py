"""Every remedy that `connectx doctor` and explain() print is executed, and helps."""

import contextlib

import pytest

import tests.remedies.addresses
import tests.remedies.firewall
import tests.remedies.ports
import tests.remedies.tables  # noqa: F401 -- all four register their cases
from connectx._diagnosis import causes
from connectx._diagnosis.causes import Cause, Remedy
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.remedies.world import EXECUTED, World

REMEDIES = [
    pytest.param((cause, remedy), id=f"{name.lower()}-{number}")
    for name, cause in vars(causes).items()
    if isinstance(cause, Cause)
    for number, remedy in enumerate(cause.remedies)
]


@pytest.mark.parametrize("of", REMEDIES)
def test_it_helps(
    of: tuple[Cause, Remedy], network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """A new remedy fails here until there is a case that executes it."""
    assert of in EXECUTED, f"no case in tests/remedies executes: {of[1].text}"
    EXECUTED[of](World(network, servers, closing, of))


@pytest.mark.parametrize("of", REMEDIES)
def test_a_command_says_what_it_breaks(of: tuple[Cause, Remedy]) -> None:
    _, remedy = of
    assert bool(remedy.command) == bool(remedy.breaks)
