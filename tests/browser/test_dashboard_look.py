"""The look of the pages on a lively day: contrast, narrow screens, gaps, colours, and what is said without data.

With `FORECACHE_PICTURES` set to a folder it writes the screenshots of `docs/images` there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from tasks.broker import CeleryBroker
from tests.support.browser import CONTRAST, Browser
from tests.support.dashboard import DashboardProcess
from tests.support.lively_day import CANARY, STABLE, TOML, day_of
from tests.support.redis_server import RedisServer
from tests.support.stack import child_environment
from tests.support.waiting import wait_for
from tests.support.warm_start import run_python

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

PAGES = {"hit-rates?window=24h": "hit-rates", "runs": "runs", "queues": "queues", "cost": "cost-page"}
MORE = ("runs?run=delay-broken", "cost?model=fare")


@dataclass
class Desk:
    browser: Browser
    process: DashboardProcess
    folder: Path

    def look(self, page: str) -> Browser:
        """Open a page; the first figures of costs take longer than it waits, and come with the next look."""
        self.browser.open(f"http://forecache:sesame@127.0.0.1:{self.process.port}/{page}")
        return self.browser

    @property
    def pictures(self) -> Path:
        return Path(os.environ.get("FORECACHE_PICTURES") or self.folder)

    def picture(self, name: str) -> None:
        self.browser.picture(self.pictures / f"{name}.png")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("lively")
    server = RedisServer(folder / "redis").start()
    process = DashboardProcess(folder, server.url())
    with (folder / "forecache.toml").open("a") as settings:
        settings.write(TOML)
    try:
        with Deployment(load_settings(folder / "forecache.toml"), WORKER, CeleryBroker) as deployment:
            day = day_of(deployment, server)
            day.write()
            process.start().wait_ready()
            with day.processes():
                yield Desk(browser, process, folder)
    finally:
        process.stop()
        server.stop()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_a_contrast_of_4_5(desk: Desk, theme: str) -> None:
    desk.look("runs").use_theme(theme)
    try:
        for page in (*PAGES, *MORE):
            assert desk.look(page).script(CONTRAST) == [], page
            if page in PAGES:
                desk.picture(PAGES[page] + ("-dark" if theme == "dark" else ""))
    finally:
        desk.look("runs").use_theme("light")


def test_a_line_has_a_gap_where_nothing_was_asked(desk: Desk) -> None:
    browser = desk.look("hit-rates?window=24h")
    lines = browser.script("""
        return ["chart-hit-rate", "chart-hit-latency", "chart-miss-latency"].flatMap((id) =>
            document.getElementById(id).data.map((line) => [line.y, line.connectgaps, line.fill ?? "none"]))
    """)
    assert len(lines) == 7
    for values, connects, fill in lines:
        assert (connects, fill) == (False, "none")
        gaps = sum(value is None for value in values[1:-1])
        assert 15 <= gaps <= 20  # three hours in points of ten minutes


def test_figures_are_shown_by_model_version(desk: Desk) -> None:
    rows = desk.look("hit-rates?window=24h").script(
        "return [...document.querySelectorAll(\"[aria-label='Model versions'] tbody tr\")]"
        ".map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    )
    assert [row[:2] for row in rows] == [[str(STABLE), "answers, stable"], [str(CANARY), "canary"]]
    told = desk.process.get("/hit-rates/data?window=24h").json()["model"]["windows"][2]["versions"]
    assert [row[2] for row in rows] == [f"{one['total']:,}" for one in told]


def test_the_time_zone_stands_beside_the_time(desk: Desk) -> None:
    browser = desk.look("hit-rates")
    try:
        zone = {"timezoneId": "Asia/Kolkata"}
        browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", zone)
        assert "(UTC+05:30, Asia/" in desk.look("hit-rates").text("#forecache-status")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_a_failed_run_is_no_green_bar_and_is_resumed_only_where_that_can_succeed(desk: Desk) -> None:
    browser = desk.look("runs?run=delay-broken")
    colour = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
    failed = {browser.script(colour, one) for one in (".progress-bar", ".chunks-ended .chunk-done")}
    actions = browser.text("#runs-buttons")
    assert "Start a run" in actions
    assert "Resume" not in actions  # another run is in progress
    green = {
        desk.look("runs?run=delay-7").script(colour, one)
        for one in (".progress-bar", ".chunk-done", ".badge.bg-success")
    }
    assert not failed & green
    served = browser.script(
        "return [...document.querySelectorAll('#runs-list tbody tr')].map((row) => row.lastChild.innerText.trim())"
    )
    assert [cell.split() for cell in served] == [["—"], ["serves", "2"], ["before", "it", "1"], ["—"], ["—"]]


def test_actions_look_unlike_choices_and_roll_back_stands_apart(desk: Desk) -> None:
    browser = desk.look("runs")
    wait_for(lambda: browser.text("#runs-rollback") == "Roll back", "the button", 20)
    looks = browser.script("""
        const ground = (node) => getComputedStyle(node).backgroundColor;
        const button = (text) => [...document.querySelectorAll("button")].find((one) => one.innerText === text);
        return [ground(document.querySelector("#choose-model .active")), ground(button("Start a run")),
            ground(button("Roll back"))]
    """)
    assert len(set(looks)) == 3
    apart = browser.script("""
        const left = document.getElementById("runs-buttons").lastChild.getBoundingClientRect().right;
        return document.getElementById("runs-rollback").getBoundingClientRect().left - left
    """)
    assert apart > 200


def test_on_a_phone_a_wide_table_says_that_it_scrolls(desk: Desk) -> None:
    with desk.browser.as_phone():
        for page in (*PAGES, *MORE):
            browser = desk.look(page)
            assert browser.script("return document.documentElement.scrollWidth") <= 400, page
            told = """
                return [...document.querySelectorAll(".table-responsive")].map((one) =>
                    [one.scrollWidth > one.clientWidth, one.nextSibling.checkVisibility(), one.tabIndex === 0])
            """
            wait_for(lambda: all(len(set(one)) == 1 for one in browser.script(told)), f"the hints of {page}", 20)  # noqa: B023
        browser = desk.look("hit-rates")
        hint = "return document.querySelector('.table-more').checkVisibility()"
        wait_for(lambda: browser.script(hint), "the hint", 20)
        browser.script("document.querySelector('.table-responsive').scrollLeft = 10000")
        wait_for(lambda: not browser.script(hint), "no hint at the end", 20)


def test_the_page_of_costs_advises_nothing_without_data_and_one_thing_with_it(desk: Desk) -> None:
    browser = desk.look("cost?model=fare")
    wait_for(lambda: browser.text("#cost-advice-note") == "too little is known: see below", "no advice", 20)
    assert browser.text("#cost-advice") == "—"
    assert "No advice yet" in browser.text("#cost-tables")
    assert "90" not in browser.text("#curves-note")
    assert "--" not in browser.text("#cost-hint")
    browser = desk.look("cost")
    wait_for(lambda: browser.text("#cost-advice") == "Hybrid", "the advice", 20)
    advised = browser.script(
        "return [...document.querySelectorAll(\"[aria-label='Advice: hybrid'] tbody tr\")]"
        ".map((row) => [row.cells[0].innerText, row.cells[1].innerText])"
    )
    ttl = dict(advised)["TTL"]
    assert f"advised: {ttl}" in browser.script("return document.querySelector('#chart-batch_ttl .legend').textContent")
    assert "though batch costs" in browser.text("#cost-advice-note")
    shown = browser.text("#cost-tables")
    assert "94.3 %" in shown or "94.2 %" in shown or "94.4 %" in shown


def test_the_command_draws_the_curves_of_the_page(desk: Desk) -> None:
    file = desk.pictures / "hit-curves.png"
    done = run_python(
        ["-m", "app.cli", "curves", "delay", "--picture", str(file)],
        cwd=desk.folder,
        env=child_environment(),
        timeout_s=60,
    )
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 20_000
    assert "advised: as old as an answer may be" in done.stdout
