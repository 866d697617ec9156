"""A real browser without a window, which opens a page as a reader does."""

from __future__ import annotations

import base64
import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Without a sandbox, which does not start for root, and without requests of its own.
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1000,900",
)

#: Finds drawn things of a figure by a test: where each is, in pixels of the figure's canvas.
FIND = """
const [figure, test] = [document.getElementById(arguments[0]), new Function("mark", "item",
  "return " + arguments[1])];
const view = drawn.get(figure).view, found = [];
(function walk(mark, x, y) {
  for (const item of mark.items) {
    const {x1, x2, y1, y2} = item.bounds;
    if (test(mark, item)) {
      found.push({x: x + (x1 + x2) / 2, y: y + (y1 + y2) / 2, right: x + x2,
        opacity: item.opacity, datum: item.datum});
    }
    for (const inner of item.items || []) walk(inner, x + (item.x || 0), y + (item.y || 0));
  }
})(view.scenegraph().root, view.origin()[0] + view.padding().left,
   view.origin()[1] + view.padding().top);
return found;
"""


class Browser:
    """A page in Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, path: Path) -> None:
        """Open a report, and wait until its figures are drawn."""
        self._driver.get(path.as_uri())
        self.wait("document.body.dataset.figures === 'drawn'")

    def wait(self, condition: str) -> None:
        """Wait until a condition in JavaScript holds."""
        WebDriverWait(self._driver, 60).until(
            lambda driver: driver.execute_script(f"return {condition}")
        )

    def evaluate(self, script: str, *arguments: object) -> Any:
        """Return the value of a piece of JavaScript."""
        return self._driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Return what the page has written to the console."""
        return [entry["message"] for entry in self._driver.get_log("browser")]  # type: ignore[no-untyped-call]  # selenium's

    def find(self, figure: str, test: str) -> list[dict[str, Any]]:
        """Return what a figure shows for which a test of mark and item, in JavaScript, holds."""
        found: list[dict[str, Any]] = self.evaluate(FIND, figure, test)
        return found

    def point(self, figure: str, place: dict[str, Any], *, click: bool = False) -> None:
        """Move the pointer to a place in a figure, and click there."""
        canvas = self.evaluate(
            "const canvas = document.querySelector(`#${arguments[0]} canvas`);"
            "canvas.scrollIntoView({block: 'center'}); return canvas;",
            figure,
        )
        size = canvas.size
        actions = ActionChains(self._driver).move_to_element_with_offset(
            canvas, round(place["x"] - size["width"] / 2), round(place["y"] - size["height"] / 2)
        )
        (actions.click() if click else actions).perform()

    def emulate(self, *, width: int, height: int, dark: bool) -> None:
        """Behave as a phone of this size in pixels, in a dark or light theme."""
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True},
        )
        scheme = "dark" if dark else "light"
        self._driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def screenshot(self) -> bytes:
        """Return what the browser shows, as PNG."""
        return base64.b64decode(self._driver.get_screenshot_as_base64())


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium and chromedriver are needed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
