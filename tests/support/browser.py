"""Debian's Chromium, steered by its chromedriver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.lazy_imports import LazyModule
from tests.support.redis_server import missing
from tests.support.waiting import wait_for

webdriver = LazyModule("selenium.webdriver")
chrome_service = LazyModule("selenium.webdriver.chrome.service")

SIZE = (1440, 1000)
#: a script that returns the texts of a page whose contrast is below 4.5
CONTRAST = Path(__file__).with_name("contrast.js").read_text()


class Browser:
    """One window over a new profile."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Open an address and wait until its figures are there."""
        self.driver.get(url)
        self.wait_live()

    def wait_live(self) -> None:
        wait_for(lambda: self.text("#forecache-status").startswith("Live"), "live figures", 20)

    def text(self, selector: str) -> str:
        return self.script(
            "const node = document.querySelector(arguments[0]); return node ? node.innerText : ''", selector
        )

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def press(self, text: str, inside: str = "body") -> None:
        """Press the button that says `text`."""
        path = f".//button[normalize-space()={text!r}]"
        box = self.driver.find_element("css selector", inside)
        wait_for(lambda: [one for one in box.find_elements("xpath", path) if one.is_displayed()], f"button {text}", 20)
        next(one for one in box.find_elements("xpath", path) if one.is_displayed()).click()

    def use_theme(self, theme: str) -> None:
        """Choose `light` or `dark` in Flower's own menu."""
        self.driver.find_element("id", "theme-toggle").click()
        self.driver.find_element("css selector", f"[data-bs-theme-value={theme}]").click()
        self.wait_live()
        # colours between the two themes have a contrast of their own
        wait_for(lambda: self.script("return document.getAnimations().length") == 0, "the end of transitions", 20)

    @contextmanager
    def as_phone(self, width: int = 400) -> Iterator[None]:
        """Be so narrow within the block, which no window may be."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def complaints(self) -> list[str]:
        """Return what the console said since the last call, but for what is only worth a note."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def picture(self, file: Path) -> None:
        """Write the whole page as a PNG file."""
        height = self.script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(SIZE[0], max(SIZE[1], height + 150))
        self.script("return new Promise((done) => window.setTimeout(done, 400))")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
        self.driver.set_window_size(*SIZE)


@contextmanager
def open_browser(folder: Path, *more: str) -> Iterator[Browser]:
    """Give a headless browser, started with `more` arguments, that is closed at the end."""
    binary = shutil.which("chromium") or missing("chromium")
    driver = shutil.which("chromedriver") or missing("chromedriver (Debian's package chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
        f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={folder / 'profile'}", *more,
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=chrome_service.Service(str(driver)))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
