"""The output that the documentation shows is what the commands print: the same words in order.

The commands run on a machine like that of the documentation, an eighteenth as large. Numbers
differ, and so do the places where lines break.
"""

import re
from pathlib import Path

import pytest

from connectx.addresses import PortRange
from docs import figure
from docs.captures import BY_THEMSELVES, ON_THE_MACHINE, OUTPUTS, capture, capture_on_machine
from docs.machine import machine

ROOT = Path(__file__).parent.parent
PORTS = PortRange(32768, 32768 + 1568 - 1)

#: Why a way of the demo was stopped depends on how many ports there are, and so does what is said
#: of that.
OF_THE_SIZE = re.compile(r"[✓✗].*|^(gave up, too slow|refused): .*", re.MULTILINE)

#: Text in a picture of a terminal.
DRAWN = re.compile(r"<text[^>]*>([^<]*)</text>")

AGAIN = "the output has changed: run `make pictures`, and look at what it drew"


def words(text: str) -> list[str]:
    """The words of an output, without its numbers, rules and bars."""
    text = re.sub(r"[\u2500-\u259f·]+", " ", text)
    return re.sub(r"[+-]?\d[\d.,:]*(e-\d+)?", "0", text).split()


def of_demo(text: str) -> list[str]:
    _, *lines = text.splitlines()
    return [word for word in words(OF_THE_SIZE.sub("", "\n".join(lines))) if word != "0"]


def of_top(text: str) -> list[str]:
    # Sorted and once each: the longest bars have texts of their own.
    found = {
        word
        for line in DRAWN.findall(text)
        for word in words(line.replace("&#160;", " "))
        # How soon it is full depends on the machine.
        if word not in {"s", "min", "0"}
    }
    return sorted(found)


def shown(name: str) -> str:
    return (OUTPUTS / name).read_text("utf-8")


class TestOutputs:
    @pytest.mark.parametrize("name", ON_THE_MACHINE)
    def test_of_the_busy_machine(self, name: str) -> None:
        with machine(PORTS) as open_more:
            printed = capture_on_machine(name, open_more)
        read = of_top if name == "top.svg" else words
        assert read(shown(name)) == read(printed), AGAIN

    def test_of_top_fetches_nothing(self) -> None:
        assert "url(http" not in shown("top.svg")

    def test_of_the_demo(self) -> None:
        printed = capture("connectx demo --ports 40000-40063")
        assert shown("demo.txt").startswith("$ connectx demo\n")
        assert of_demo(shown("demo.txt")) == of_demo(printed), AGAIN

    def test_of_latency(self) -> None:
        printed = capture("connectx lab latency --ports 40000-40499")
        assert words(shown("latency.txt")) == words(printed), AGAIN

    @pytest.mark.parametrize("name", ["simulate.txt", "techniques.txt"])
    def test_that_has_no_chance_in_it(self, name: str) -> None:
        # But for the last line, which says how long it took or how to repeat it.
        *lines, _ = shown(name).splitlines()
        *again, _ = capture(BY_THEMSELVES[name]).splitlines()
        assert lines == again, AGAIN

    def test_every_one_is_on_a_page(self) -> None:
        pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
        for path in OUTPUTS.iterdir():
            assert f"outputs/{path.name}" in pages
        for name in re.findall(r"outputs/([\w.-]+)", pages):
            assert (OUTPUTS / name).exists()


class TestFigure:
    @pytest.mark.parametrize("kind", figure.PALETTES)
    def test_is_drawn_from_the_results(self, kind: str) -> None:
        drawn = figure.draw(figure.results(), figure.PALETTES[kind])
        path = figure.RESULTS / f"speed-{kind}.svg"
        assert path.read_text("utf-8") == drawn, AGAIN

    def test_is_on_the_first_screen(self) -> None:
        for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
            for kind in figure.PALETTES:
                assert f"results/speed-{kind}.svg" in page.read_text()[:2000]
