"""The picture of the house (docs/how-it-works.md) is what the import contracts say, and no more."""

import re
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import connectx
from docs import flowchart

ROOT = Path(__file__).parent.parent
HOUSE = Path(str(connectx.__file__)).parent

PICTURE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^\s*(?:from|import) connectx\.(\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def picture() -> flowchart.Flowchart:
    (text,) = PICTURE.findall((ROOT / "docs" / "how-it-works.md").read_text())
    return flowchart.parse(text)


@pytest.fixture(scope="module")
def contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def rooms() -> set[str]:
    """The modules and packages at the root, which are what users and contracts name."""
    names = {path.stem for path in HOUSE.iterdir() if path.suffix in {"", ".py"}}
    return {name for name in names if not name.startswith("__")}


def imports(room: str) -> set[str]:
    path = HOUSE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return {name for file in files for name in IMPORT.findall(file.read_text())}


def above(contracts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Which room the contracts put above which; those that are not built yet are left out."""
    found = set()
    for contract in contracts:
        if contract["type"] == "layers":
            layers = [re.findall(r"\w+", layer) for layer in contract["layers"]]
            for upper, lower in combinations(layers, 2):
                found |= {(one, other) for one in upper for other in lower}
        elif contract["type"] == "protected":
            for name in contract["protected_modules"]:
                found |= {
                    (importer.removeprefix("connectx."), name.removeprefix("connectx."))
                    for importer in contract["allowed_importers"]
                }
    return {pair for pair in found if set(pair) <= rooms()}


def test_every_room_is_in_the_picture(picture: flowchart.Flowchart) -> None:
    assert set(picture.labels) == rooms()
    for name, lines in picture.labels.items():
        assert lines[0] == name
        assert len(lines) == 2


def test_the_picture_has_what_the_contracts_say(
    picture: flowchart.Flowchart, contracts: list[dict[str, Any]]
) -> None:
    ordered = above(contracts)
    assert ("cli", "addresses") in ordered
    assert {pair for pair in ordered if pair[1] not in picture.below(pair[0])} == set()


def test_nothing_in_the_picture_is_against_the_contracts(
    picture: flowchart.Flowchart, contracts: list[dict[str, Any]]
) -> None:
    ordered = above(contracts)
    backwards = {(other, one) for one, other in picture.arrows}
    assert backwards & ordered == set()
    assert [room for room in picture.labels if room in picture.below(room)] == []
    for contract in contracts:
        # Siblings must not import each other.
        for layer in contract["layers"] if contract["type"] == "layers" else ():
            for one, other in combinations(re.findall(r"\w+", layer), 2):
                assert other not in picture.below(one)
                assert one not in picture.below(other)


def test_an_arrow_that_no_contract_asks_for_is_an_import(
    picture: flowchart.Flowchart, contracts: list[dict[str, Any]]
) -> None:
    for one, other in set(picture.arrows) - above(contracts):
        assert other in imports(one), (one, other)


class TestFlowchart:
    """What the site draws in Mermaid's place."""

    def test_a_box_is_below_every_box_that_points_to_it(self) -> None:
        chart = flowchart.parse(
            """
            flowchart TB
                top --> middle --> bottom
                top & aside --> bottom
            """
        )
        assert chart.rows() == [["top"], ["middle", "aside"], ["bottom"]]

    def test_labels_are_text(self) -> None:
        chart = flowchart.parse('flowchart TB\n    one["1 < 2<br>a & b"]\n    one --> other')
        drawn = flowchart.draw(chart, 'of "one"')
        assert 'aria-label="of &quot;one&quot;"' in drawn
        assert ">1 &lt; 2</text>" in drawn
        assert ">a &amp; b</text>" in drawn
        assert ">other</text>" in drawn

    @pytest.mark.parametrize(
        "text", ["flowchart LR\n", "flowchart TB\n    one -.-> other", "flowchart TB\n    one{?}"]
    )
    def test_what_is_not_drawn_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"flowchart|not a box or an arrow"):
            flowchart.parse(text)
