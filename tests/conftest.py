"""What every test gets: a private network, leak checks, and no silent skips in CI."""

import gc
import signal

import hypothesis
import pytest

pytest_plugins = [
    "connectx.testing.fixtures",
    "pytester",
    "tests.plugins.no_skips_in_ci",
    "tests.plugins.trio_threads",
]

# Time limits, for an example and for making one up, fail on a busy machine and say nothing about
# the code.
hypothesis.settings.register_profile(
    "connectx", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("connectx")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Leave what pytest keeps out of garbage collections, of which many a test makes one.

    With thousands of tests and reports alive, that one would cost more than the test itself.
    """
    gc.collect()
    gc.freeze()
