"""The oldest release of each library that an integration takes, as pip's requirements.

usage: python -m tests.integrations.oldest
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import connectx.integrations

_CALL: Final = re.compile(r'^with _dialers\.library\("(.+)", "(.+)"\):$', re.MULTILINE)


def of(module: Path) -> dict[str, str]:
    """The releases that a module asks for, by library."""
    return dict(_CALL.findall(module.read_text("utf-8")))


def releases() -> dict[str, str]:
    """The releases that all modules ask for, by library."""
    found: dict[str, str] = {}
    for directory in connectx.integrations.__path__:
        for module in sorted(Path(directory).rglob("*.py")):
            found |= of(module)
    return found


def main() -> None:
    """Print them."""
    for name, release in releases().items():
        # The last patch of it, such as 2.0.7 of 2.0.
        print(f"{name}=={release}.*")  # noqa: T201


if __name__ == "__main__":
    main()
