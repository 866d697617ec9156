"""What every test gets: a private network, leak checks, and no silent skips in CI."""

pytest_plugins = ["connectx.testing.fixtures", "pytester", "tests.plugins.no_skips_in_ci"]
