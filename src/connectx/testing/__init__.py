"""Helpers for tests and experiments: private networks, servers, pytest fixtures.

``namespaces`` and ``servers`` need nothing but the standard library; only
``fixtures``, a pytest plugin, imports pytest.
"""
