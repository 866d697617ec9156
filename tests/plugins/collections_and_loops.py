"""Fixtures for packages whose tests each collect garbage, or run on uvloop: to be imported."""

import gc

import pytest
import uvloop


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Leave what pytest keeps out of garbage collections, of which each test makes one.

    With thousands of tests and reports alive, that one would cost more than the test itself.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_pipe() -> None:
    """libuv makes one for the process with its first loop, and keeps it."""
    uvloop.new_event_loop().close()
