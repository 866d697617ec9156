"""What every test gets: a private network, leak checks, and no silent skips in CI."""

import signal

import hypothesis

pytest_plugins = [
    "connectx.testing.fixtures",
    "pytester",
    "tests.plugins.no_skips_in_ci",
    "tests.plugins.trio_threads",
]

# A time limit for one example fails on a busy machine and says nothing about the code.
hypothesis.settings.register_profile("connectx", deadline=None)
hypothesis.settings.load_profile("connectx")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
