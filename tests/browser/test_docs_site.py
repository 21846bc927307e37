"""The site of the docs in a real browser: all of it comes from the host that serves it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.stack import ROOT
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.slow]

ASKED_FOR = "return performance.getEntriesByType('resource').map((one) => one.name)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    # by the words of `make docs`
    line = next(one for one in (ROOT / "Makefile").read_text().splitlines() if "sphinx-build" in one)
    words = line.split()[1:]
    moved = [word.replace("build/", f"{folder}/") for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *moved], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_page_asks_another_host_for_anything(site: Path, url: str, browser: Browser) -> None:
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    assert {"index.html", "docs/models.html", "docker/README.html"} <= set(pages)
    asked: set[str] = set()
    for page in pages:
        browser.driver.get(f"{url}/{page}")
        asked.update(browser.script(ASKED_FOR))
    assert any(".css" in one for one in asked)
    assert {one for one in asked if not one.startswith((f"{url}/", "data:"))} == set()


def test_the_search_finds_a_page_by_a_word_of_it(url: str, browser: Browser) -> None:
    browser.driver.get(f"{url}/search.html?q=quarantine")
    found = wait_for(lambda: browser.text(".search"), "what the search found", 20)
    assert "Batch runs" in found
