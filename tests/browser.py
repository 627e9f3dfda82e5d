"""A real browser for the tests of pages: headless Chromium, skipped where it is not installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@contextmanager
def open_browser(
    width: int = 1000, height: int = 900, *, mobile: bool = False
) -> Iterator["Chrome"]:
    """Chromium; `console(browser)` has what pages wrote to its console."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    words = ["--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars"]
    # Chromium refuses its own sandbox to root, which CI often is.
    words += ["--no-sandbox"] if os.geteuid() == 0 else []
    for word in (*words, f"--window-size={width},{height}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    browser = webdriver.Chrome(options=options, service=service)
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield browser
    finally:
        browser.quit()


def console(browser: Any) -> list[str]:
    """What the pages wrote to the console since it was last asked: errors and warnings."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in {"SEVERE", "WARNING"}
    ]
