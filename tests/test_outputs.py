"""The output that the documentation shows is what the commands print: the same words in order.

The commands run on a machine like that of the documentation, a ninth as large. Numbers differ, and
so do the places where lines break.
"""

import re

import pytest

from connectx.addresses import PortRange
from docs import captures, figure
from docs.captures import BY_THEMSELVES, OUTPUTS, capture

PORTS = PortRange(32768, 32768 + 3136 - 1)

#: What an errno of the demo, and why a way was stopped, depend on how many ports there are.
OF_THE_SIZE = re.compile(r"none|\bE[A-Z]+|all ports|too slow|\d+ failures")

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


def of_top(text: str) -> set[str]:
    # A set: the longest bars have texts of their own.
    return {
        word
        for line in DRAWN.findall(text)
        for word in words(line.replace("&#160;", " "))
        # How soon it is full depends on the machine.
        if word not in {"s", "min", "0"}
    }


def shown(name: str) -> str:
    return (OUTPUTS / name).read_text("utf-8")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the commands print on a small machine."""
    return dict(captures.on_the_machine(PORTS))


@pytest.mark.xdist_group("outputs")
class TestOutputs:
    @pytest.mark.parametrize("name", [*captures.ON_THE_MACHINE, "metrics"])
    def test_of_the_busy_machine(self, name: str, printed: dict[str, str]) -> None:
        assert words(shown(f"{name}.txt")) == words(printed[f"{name}.txt"]), AGAIN

    def test_of_top(self, printed: dict[str, str]) -> None:
        assert of_top(shown("top.svg")) == of_top(printed["top.svg"]), AGAIN

    def test_of_top_fetches_nothing(self) -> None:
        assert "url(http" not in shown("top.svg")

    def test_of_the_demo(self) -> None:
        printed = capture("connectx demo --ports 40000-40063")
        assert shown("demo.txt").startswith("$ connectx demo\n")
        assert of_demo(shown("demo.txt")) == of_demo(printed), AGAIN

    def test_of_latency(self) -> None:
        printed = capture("connectx lab latency --ports 40000-40499")
        assert words(shown("latency.txt")) == words(printed), AGAIN

    @pytest.mark.parametrize("name", ["simulate", "techniques"])
    def test_that_has_no_chance_in_it(self, name: str) -> None:
        # But for the last line, which says how long it took or how to repeat it.
        *lines, _ = shown(f"{name}.txt").splitlines()
        *again, _ = capture(BY_THEMSELVES[name]).splitlines()
        assert lines == again, AGAIN


class TestFigure:
    @pytest.mark.parametrize("kind", figure.PALETTES)
    def test_is_drawn_from_the_results(self, kind: str) -> None:
        drawn = figure.draw(figure.results(), figure.PALETTES[kind])
        path = figure.RESULTS / f"speed-{kind}.svg"
        assert path.read_text("utf-8") == drawn, AGAIN
