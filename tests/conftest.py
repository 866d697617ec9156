"""What every test gets: a private network, leak checks, and no silent skips in CI."""

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
