"""``connectx lab report``, on a range small enough for a test, in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import struct
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from connectx.linux import features
from connectx.linux.features import Probe
from tests.cli.schemas import check
from tests.lab.browser import Browser, browser
from tests.lab.commands import connectx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The first one waits for the experiments.
pytestmark = pytest.mark.timeout(300)

PORTS = "20000-21023"


class Written(NamedTuple):
    """What the command wrote, and what it printed."""

    page: Path
    figures: Path
    data: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    directory = tmp_path_factory.mktemp("report")
    page, figures, data = directory / "page.html", directory / "figures", directory / "data.json"
    result = connectx(
        *("lab", "report", "--ports", PORTS, "--output", str(page)),
        *("--figures", str(figures), "--data", str(data)),
        timeout=280,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return Written(page, figures, json.loads(data.read_text()), result.stdout)


@pytest.fixture
def reader(written: Written) -> Iterator[Browser]:
    with browser() as opened:
        opened.open(written.page)
        yield opened


def names(written: Written) -> set[str]:
    return {path.stem for path in written.figures.iterdir()}


class TestPage:
    def test_is_drawn_without_a_complaint(self, reader: Browser, written: Written) -> None:
        assert reader.complaints() == []
        drawn = reader.evaluate(
            "return [...document.querySelectorAll('figure')].map(f => [f.id, f.dataset.figure])"
        )
        assert {state for _, state in drawn} == {"drawn"}
        # The page has no figures of windows between the smallest and the largest.
        assert {name for name, _ in drawn} <= names(written)
        assert {"latency-kernel", "latency-auto", "addresses", "strategies", "churn", "model"} <= {
            name for name, _ in drawn
        }

    def test_every_figure_shows_something(self, reader: Browser) -> None:
        blank = reader.evaluate(
            """
            return [...document.querySelectorAll('figure canvas')].filter(canvas => {
              const {width, height} = canvas;
              const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
              return new Set(new Uint32Array(pixels.buffer)).size < 10;
            }).length
            """
        )
        assert blank == 0

    def test_needs_nothing_but_itself(self, reader: Browser) -> None:
        assert reader.evaluate("return performance.getEntriesByType('resource').length") == 0
        elsewhere = "[src], link:not([href^='data:']), a[href]:not([href^='#'])"
        assert reader.evaluate(f'return document.querySelectorAll("{elsewhere}").length') == 0

    def test_pointing_at_something_tells_what_it_is(self, reader: Browser) -> None:
        bars = reader.find("addresses", "mark.marktype === 'rect' && item.datum.connections > 0")
        tallest = max(bars, key=lambda bar: bar["datum"]["connections"])
        reader.point("addresses", tallest)
        reader.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
        shown = reader.evaluate("return document.getElementById('vg-tooltip-element').innerText")
        # Another bar may be in front of it.
        assert "source address" in shown
        assert "connections" in shown

    def test_the_legend_picks_out_a_kind(self, reader: Browser) -> None:
        dots = "mark.marktype === 'symbol' && item.datum.kind === '{}'"
        even, odd = dots.format("even port"), dots.format("odd port")
        assert {dot["opacity"] for dot in reader.find("latency-kernel", even)} == {0.8}
        (entry,) = reader.find(
            "latency-kernel", "mark.role === 'legend-symbol' && item.datum.value === 'odd port'"
        )
        reader.point("latency-kernel", entry, click=True)
        assert {dot["opacity"] for dot in reader.find("latency-kernel", odd)} == {0.8}
        assert {dot["opacity"] for dot in reader.find("latency-kernel", even)} == {0.03}

    def test_is_readable_on_a_phone_in_the_dark(self, reader: Browser, tmp_path: Path) -> None:
        light = reader.evaluate("return getComputedStyle(document.body).backgroundColor")
        reader.emulate(width=390, height=844, dark=True)
        reader.wait("getComputedStyle(document.body).backgroundColor !== '" + light + "'")
        # Nothing makes the page wider than the screen; tables scroll by themselves.
        assert reader.evaluate("return document.documentElement.scrollWidth") <= 390
        widths = reader.evaluate(
            "return [...document.querySelectorAll('figure canvas')].map(c => c.clientWidth)"
        )
        assert min(widths) >= 250
        assert reader.complaints() == []
        # For people to look at.
        (tmp_path / "phone.png").write_bytes(reader.screenshot())

    def test_says_what_it_ran_on_and_how_to_repeat_it(self, reader: Browser) -> None:
        text = reader.evaluate("return document.body.innerText")
        assert f"Linux {os.uname().release}" in text
        assert "net.ipv4.ip_local_port_range" in text
        for command in ("report", "latency", "simulate", "techniques"):
            assert f"connectx lab {command}" in text
        assert f"--ports {PORTS}" in text

    def test_begins_with_what_it_comes_to(self, reader: Browser) -> None:
        first = reader.evaluate("return document.querySelector('h1 + p').innerText")
        assert "1,024 TCP connections to one destination took " in first
        assert "As the range fills up, " in first
        assert "not as expected" not in first

    def test_all_fills_have_the_same_axis_of_time(self, reader: Browser) -> None:
        domains = reader.evaluate(
            """
            return [...document.querySelectorAll('figure')].filter(f => f.id.startsWith('latency'))
              .map(figure => drawn.get(figure).view.scale('y')).map(y => [y.type, ...y.domain()])
            """
        )
        assert len(domains) > 8
        assert {kind for kind, *_ in domains} == {"log"}
        assert len({tuple(ends) for _, *ends in domains}) == 1

    def test_what_is_the_same_is_shown_once(self, reader: Browser) -> None:
        rows = reader.evaluate(
            """
            return ['techniques', 'mixing', 'listeners'].flatMap(id => {
              const found = [];
              for (let part = document.getElementById(id).nextElementSibling;
                   part && part.tagName !== 'H2'; part = part.nextElementSibling) {
                for (const table of part.querySelectorAll('table')) {
                  found.push([...table.tBodies[0].rows].map(
                    row => [...row.cells].slice(1).map(cell => cell.textContent).join('|')));
                }
              }
              return found;
            })
            """
        )
        assert len(rows) >= 6
        for table in rows[:2] + rows[-2:]:
            assert len(set(table)) == len(table)

    def test_shows_every_technique_as_expected(self, reader: Browser, written: Written) -> None:
        text = reader.evaluate("return document.body.innerText")
        assert "differs" not in text
        for row in written.data["techniques"]:
            assert row["agrees"] is not False
            assert row["technique"] in text


class TestFigures:
    def test_are_pictures(self, written: Written) -> None:
        for name in names(written):
            png = (written.figures / f"{name}.png").read_bytes()
            assert png.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack_from("!II", png, 16)
            assert width > height > 300
            svg = ET.parse(written.figures / f"{name}.svg").getroot()  # noqa: S314 - our own
            assert len(list(svg.iter())) > 50


class TestData:
    def test_fits_its_schema(self, written: Written) -> None:
        check("lab-report", json.dumps(written.data))

    def test_holds_the_findings(self, written: Written) -> None:
        kernel = written.data["strategies"]["kernel"]
        assert kernel["opened"] == 1024
        assert kernel["even"]["connections"] == kernel["odd"]["connections"] == 512
        assert written.data["strategies"]["auto"]["errors"] == 0
        assert written.data["udp"]["auto"]["opened"] == 1024
        assert written.data["addresses"]["2"]["opened"] == round(1024 * 70000 / 56512)
        if features.probe(features.IP_LOCAL_PORT_RANGE) is Probe.YES:
            assert len(written.data["windows"]) == 4
            assert written.data["missing"] == {}
        occupancies = {each["occupancy"] for each in written.data["churn"]}
        assert occupancies == {0.8, 0.95, 0.99, 0.999}

    def test_names_the_machine_but_not_by_name(self, written: Written) -> None:
        assert written.data["machine"]["kernel"] == os.uname().release
        assert os.uname().nodename not in json.dumps(written.data["machine"])

    def test_the_command_said_what_it_did(self, written: Written) -> None:
        lines = written.said.splitlines()
        assert [line.split()[0] for line in itertools.islice(lines, 3)] == ["wrote"] * 3
        assert "findings on techniques are as expected" in lines[3]
        low, high = PORTS.split("-")
        assert f"net.ipv4.ip_local_port_range = {low} {high}" in lines[-1]
        assert "Nothing else was changed." in lines[-1]

    def test_the_machine_is_shown_as_it_was(self, written: Written) -> None:
        sysctls = written.data["machine"]["sysctls"]
        assert sysctls["net.ipv4.ip_local_port_range"] != PORTS.replace("-", " ")
