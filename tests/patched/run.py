"""Patch everything with gevent, before or after connectx is imported, and run pytest.

usage: python -m tests.patched.run before|after PYTEST-ARGUMENT...
"""

import sys

import gevent.monkey  # type: ignore[import-untyped] # it has no types


def main(when: str, *arguments: str) -> int:
    if when == "after":
        import connectx.aio
        import connectx.blocking
        import connectx.dialer  # noqa: F401 - all that is to be there before
    # gevent warns of ssl, which pytest's plugins have imported.
    gevent.monkey.patch_all()
    import pytest

    return int(pytest.main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
