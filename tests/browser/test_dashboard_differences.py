"""A look before publishing, as an operator takes it: by commands, over HTTP and in a browser, over real workers.

The tests tell one story, in their order. With `FORECACHE_PICTURES` set to a folder they write the screenshots of
`docs/images` there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.browser import CONTRAST, Browser, open_browser
from tests.support.models import add_times_version
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

TOML = """
[models.delay]
path = "model"
features = "flights.parquet"
versions = [1]
[models.delay.batch]
feature_table = true
flips_threshold = 30
"""
ROWS = 20_000
CARRIERS = ["AA", "DL", "HA", "UA"]


@dataclass
class Desk:
    stack: Stack
    browser: Browser
    runs: dict[str, str] = field(default_factory=dict)

    def run(self, *options: str) -> dict[str, Any]:
        done = self.stack.cli("batch", "run", "--wait", "--json", *options)
        assert done.returncode == 0, done.stderr
        run: dict[str, Any] = json.loads(done.stdout)
        return run

    def picture(self, name: str) -> None:
        folder = os.environ.get("FORECACHE_PICTURES")
        self.browser.picture(Path(folder or self.stack.folder) / f"{name}.png")


def write_table(folder: Path, *, later: bool) -> None:
    """Delays of flights; later, those of one carrier are 20 minutes more, and all are measured a little anew."""
    random = np.random.default_rng(7)
    delays = random.gamma(2.0, 8.0, ROWS)
    carriers = random.integers(0, len(CARRIERS), ROWS)
    if later:
        delays += np.where(carriers == CARRIERS.index("HA"), 20.0, random.normal(0, 0.5, ROWS))
    table = {
        "entity_id": [f"F{number}" for number in range(ROWS)],
        "x": pa.array(delays, pa.float32()),
        "carrier": [CARRIERS[one] for one in carriers],
    }
    pq.write_table(pa.table(table), folder / "flights.parquet")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("differences")
    write_table(folder, later=False)
    add_times_version(folder / "model", 1, 1.0)
    with Stack(folder, TOML) as stack, open_browser(folder) as browser:
        stack.start("gpu", "maintenance", "realtime", "api", "dashboard")
        stack.wait_ready()
        yield Desk(stack, browser)


def test_a_run_is_held_and_its_difference_is_printed(desk: Desk) -> None:
    assert desk.run()["state"] == "published"
    write_table(desk.stack.folder, later=True)
    held = desk.run("--hold")
    assert held["state"] == "held"
    desk.runs["held"] = held["run_id"]
    printed = desk.stack.cli("batch", "diff", held["run_id"], "--segment", "carrier")
    assert printed.returncode == 0, printed.stderr
    for words in ("20,000 in both", "flips", "by carrier", "HA", "stored features"):
        assert words in printed.stdout
    findings = json.loads(desk.stack.cli("doctor", "--json").stdout)
    assert any(one["subject"] == "delay, held run" for one in findings)
    assert desk.stack.cli("batch", "diff", "nosuch").stderr.startswith("forecache: no run 'nosuch'")


def test_it_is_compared_over_http(desk: Desk) -> None:
    url = f"{desk.stack.url}/runs/{desk.runs['held']}/diff"
    before = httpx.get(url).raise_for_status().json()
    assert before["outputs"][0]["segments"]
    accepted = httpx.post(url, json={"threshold": 45, "top": 3, "features": False})
    assert (accepted.status_code, accepted.headers["location"]) == (202, f"/runs/{desk.runs['held']}/diff")
    wait_for(lambda: httpx.get(url).json()["made_at"] != before["made_at"], "a new comparison", 30)
    after = httpx.get(url).json()
    assert (after["options"]["threshold"], len(after["outputs"][0]["movers"]), after["features"]) == (45, 3, None)
    refused = httpx.post(url, json={"segment": "carier"})
    assert refused.status_code == 400
    assert "did you mean 'carrier'" in refused.json()["detail"]


def test_the_page_shows_it_and_a_button_compares_again(desk: Desk) -> None:
    browser = desk.browser
    browser.open(f"{desk.stack.dashboard_url}/differences")
    wait_for(lambda: browser.text("#diff-both") == "20,000", "the comparison", 20)
    browser.script("document.getElementById('diff-threshold').value = '30'")
    browser.script("document.getElementById('diff-segment').value = 'carrier'")
    browser.press("Compare now")
    wait_for(lambda: "HA" in browser.text("#diff-outputs"), "segments", 40)
    assert "of the decisions flip" in browser.text("#diff-outputs")
    assert "Features that moved most".lower() in browser.text("#diff-features").lower()
    assert browser.script("return document.querySelectorAll('#chart-output-0 .point').length") > 20
    assert "[object" not in browser.text("body")
    assert browser.complaints() == []
    assert browser.script(CONTRAST) == []
    desk.picture("differences")
    browser.use_theme("dark")
    assert browser.script(CONTRAST) == []
    desk.picture("differences-dark")
    browser.use_theme("light")
    with browser.as_phone():
        browser.open(f"{desk.stack.dashboard_url}/differences")
        wait_for(lambda: browser.text("#diff-both") == "20,000", "the comparison", 20)
        assert browser.script("return document.documentElement.scrollWidth") <= 400


def test_a_column_that_is_not_there_is_told_on_the_page(desk: Desk) -> None:
    browser = desk.browser
    browser.open(f"{desk.stack.dashboard_url}/differences")
    browser.script("document.getElementById('diff-segment').value = 'carier'")
    browser.press("Compare now")
    wait_for(lambda: "did you mean 'carrier'" in browser.text("#runs-note"), "the refusal", 20)
    browser.complaints()  # the refusal itself


def test_the_button_publishes_the_run(desk: Desk) -> None:
    browser = desk.browser
    browser.open(f"{desk.stack.dashboard_url}/differences")
    browser.press("Publish this run")
    browser.press("Publish", "#runs-confirm")
    run = desk.stack.wait_run(desk.runs["held"])
    wait_for(lambda: desk.stack.wait_run(desk.runs["held"])["state"] == "published", "the publication", 40)
    run = desk.stack.wait_run(desk.runs["held"])
    assert (run["approved_by"], run["forced"]) == ("dashboard", False)
    assert browser.complaints() == []


def test_a_shadow_run_compares_a_version_that_does_not_serve(desk: Desk) -> None:
    add_times_version(desk.stack.folder / "model", 2, 3.0)
    before = desk.stack.deployment.predictions("delay").pointer()
    shadow = desk.run("--model-version", "2", "--shadow")
    assert (shadow["state"], shadow["model_version"], shadow["feature_generation"]) == ("compared", 2, None)
    assert desk.stack.deployment.predictions("delay").pointer() == before
    printed = desk.stack.cli("batch", "diff", shadow["run_id"])
    assert printed.returncode == 0, printed.stderr
    assert "model version 2" in printed.stdout
    missing = desk.stack.cli("batch", "run", "--wait", "--model-version", "9", "--shadow")
    assert missing.returncode == 1
    assert "9" in missing.stdout


def test_the_page_of_runs_and_the_list_tell_what_each_run_scored(desk: Desk) -> None:
    full = desk.run("--delta")  # the run that serves kept nothing to compare with
    delta = desk.run("--delta")
    assert [(run["kind"], run["rows_carried"]) for run in (full, delta)] == [("full", None), ("delta", ROWS)]
    browser = desk.browser
    browser.open(f"{desk.stack.dashboard_url}/runs?run={delta['run_id']}")
    wait_for(lambda: "20,000 rows carried over from" in browser.text("#runs-details"), "the facts of the run", 20)
    kinds = browser.script(
        "return [...document.querySelectorAll('#runs-list tbody tr')].map((row) => row.children[2].textContent)"
    )
    assert kinds == ["delta", "full", "shadow", "shadow", "full", "full"]
    titles = browser.script(
        "return [...document.querySelectorAll('#runs-list tbody tr')].map((row) => row.children[2].title)"
    )
    assert "kept no digests" in titles[1]
    assert "[object" not in browser.text("body")
    assert browser.complaints() == []
    listed = desk.stack.cli("batch", "list").stdout
    assert all(word in listed for word in ("kind", "shadow", "delta", "full"))
    with browser.as_phone():
        browser.open(f"{desk.stack.dashboard_url}/runs")
        wait_for(lambda: "delta" in browser.text("#runs-list"), "the list", 20)
        assert browser.script("return document.documentElement.scrollWidth") <= 400
