"""A fixture for packages whose tests run on uvloop: to be imported."""

import pytest
import uvloop


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_pipe() -> None:
    """libuv makes one for the process with its first loop, and keeps it."""
    uvloop.new_event_loop().close()
