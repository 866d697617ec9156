from collections.abc import Iterator

import pytest

from connectx.sandbox.workers import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew
