"""pytest fixtures for tests that open connections, each test in a private network.

``fixtures`` is the plugin; it is the only module here, and the only one of connectx that
imports pytest. It stands on :mod:`connectx.sandbox`, which needs the standard library only.
"""
