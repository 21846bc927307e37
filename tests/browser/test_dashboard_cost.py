"""The page of costs in a browser, over a history that was written into Redis."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from inference.economics.promises import DayFigures
from inference.monitoring.asked_filters import DAY_S
from inference.redis.clients import Client
from inference.stored_data import json_text_of
from tests.support.browser import Browser
from tests.support.dashboard import DashboardProcess
from tests.support.history import KEYS, count_requests, keep_runs, log_accesses, publish_generation
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DashboardProcess, RedisServer]]:
    folder = tmp_path_factory.mktemp("cost")
    server = RedisServer(folder / "redis").start()
    process = DashboardProcess(folder, server.url())
    with (folder / "forecache.toml").open("a") as settings:
        settings.write(
            'features = "t.parquet"\n[models.delay.batch]\nschedule = "6h"\nttl = "12h"\n'
            '[models.delay.realtime]\ndefault = 0.0\n[models.new]\npath = "models/new"\n'
        )
    try:
        yield process.start().wait_ready(), server
    finally:
        process.stop()
        server.stop()


def open_page(browser: Browser, process: DashboardProcess, model: str) -> None:
    browser.open(f"http://forecache:sesame@127.0.0.1:{process.port}/cost?model={model}")


async def leave_history(server: RedisServer) -> None:
    """Ask for 50 000 of 200 000 entities over three hours, at 200/s and at times more."""
    with Client.from_url(server.url()) as client:
        publish_generation(client, rows=200_000)
        keep_runs(client, "published", "published", "published", rows=200_000)
    await log_accesses(server, days=3, entities=50_000, each_s=6)
    for back in range(20):
        at = time.time() - back * 600
        hits = 90_000 + 30_000 * (back % 5)
        await count_requests(server, hits=hits, misses=9_000, entities=50_000, clock=lambda at=at: at)


def keep_promises(server: RedisServer, days: int) -> None:
    """Leave promises of some days behind: two were missed, one had no requests, one has no promise."""
    with Client.from_url(server.url()) as client:
        today = int(time.time() // DAY_S)
        for back in range(1, days + 1):
            wave = math.sin(back / 3)
            promised = DayFigures("hybrid", 0.95 + 0.01 * wave, 130 + 8 * wave, "USD", 40 + 5 * wave, 2.5, None)
            came = replace(promised, hit_rate=0.948 + 0.012 * wave, cost=131 + 9 * wave, requests=1_000_000)
            if back == 4:
                came = replace(promised, hit_rate=None, cost=None, peak_rps=None, peak_misses_rps=None, requests=0)
            fields = {"promised": json_text_of(DayFigures, promised), "came": json_text_of(DayFigures, came)}
            if back == 7:
                del fields["promised"]
            if back not in (10, 11):
                client.hset(KEYS.promise("delay", today - back), mapping=fields)


def test_a_model_without_a_history_says_what_is_missing(
    browser: Browser, dashboard: tuple[DashboardProcess, RedisServer]
) -> None:
    open_page(browser, dashboard[0], "new")
    wait_for(lambda: "entities is missing" in browser.text("#cost-hint"), "what is missing", 20)
    assert browser.text("#cost-batch") == "—"
    assert browser.text("#cost-advice-note") == "too little is known: see below"
    for charts in ("cost-charts", "promise-charts"):
        assert not browser.script(f"return document.getElementById('{charts}').checkVisibility()")
    assert "Nothing is kept yet" in browser.text("[aria-label='What was promised, and what came']")
    assert browser.complaints() == []


def test_costs_advice_and_both_charts_are_shown(
    browser: Browser, dashboard: tuple[DashboardProcess, RedisServer]
) -> None:
    process, server = dashboard
    asyncio.run(leave_history(server))
    open_page(browser, process, "delay")
    wait_for(lambda: browser.text("#cost-realtime").startswith("$"), "costs", 20)
    told = process.get("/cost/data?model=delay").json()["costs"]
    assert browser.text("#cost-realtime") == f"${told['estimate']['realtime']['daily']:.2f}"
    assert browser.text("#cost-hybrid") == f"${told['estimate']['hybrid']['daily']:.2f}"
    assert browser.text("#cost-advice") == "Hybrid"
    unread = float(format(told["advice"]["never_read"], ".3g"))
    assert browser.text("#cost-unread") == f"{unread:,.0f}"
    for chart in ("chart-cost", "chart-swings"):
        assert browser.script(f"return document.querySelectorAll('#{chart} .trace, #{chart} .point').length") >= 2
    assert "[object" not in browser.text("body")
    assert browser.complaints() == []
    grid = "return getComputedStyle(document.querySelector('#chart-realtime_ttl .ygrid')).stroke"
    light = browser.script(grid)
    browser.use_theme("dark")
    wait_for(lambda: browser.script(grid) != light, "charts in the dark", 20)
    browser.use_theme("light")


def test_hit_rate_curves_show_today_and_the_advised_point(
    browser: Browser, dashboard: tuple[DashboardProcess, RedisServer]
) -> None:
    process, _ = dashboard
    open_page(browser, process, "delay")
    wait_for(lambda: "accesses within" in browser.text("#curves-note"), "curves", 20)
    told = process.get("/cost/data?model=delay").json()["costs"]["advice"]["hit_curves"]
    for curve in told["curves"]:
        chart = f"chart-{curve['name']}"
        assert browser.script(f"return document.querySelectorAll('#{chart} .trace').length") >= 4
        shown = browser.script(f"return document.querySelector('#{chart} .legend')?.textContent ?? ''")
        for name in ("today", "advised"):
            assert (f"{name}: " in shown) == (curve[name] is not None)
            assert curve[name] is None or f"{name}: {curve[name]['label']}" in shown
    assert [curve["name"] for curve in told["curves"]] == [
        "batch_ttl",
        "share_hottest",
        "share_latest",
        "interval",
        "realtime_ttl",
    ]
    assert browser.complaints() == []


def test_promises_are_shown_beside_what_came(browser: Browser, dashboard: tuple[DashboardProcess, RedisServer]) -> None:
    process, server = dashboard
    keep_promises(server, 30)
    open_page(browser, process, "delay")
    rows = "return [...document.querySelectorAll(\"[aria-label='What was promised, and what came'] tbody tr\")]"
    wait_for(lambda: len(browser.script(rows + ".map((row) => row.innerText)")) == 10, "ten days", 20)
    days = browser.script(rows + ".map((row) => [...row.cells].map((cell) => cell.innerText))")
    told = process.get("/cost/data?model=delay").json()["costs"]["promises"]
    assert [day[0] for day in days] == [day["day"] for day in told[:10]]
    assert days[0][3:5] == [f"${told[0]['promised']['cost']:.2f}", f"${told[0]['came']['cost']:.2f}"]
    assert [day[-1] for day in days[:4]] == ["", "", "", "no requests"]
    assert days[3][2] == "—"
    assert days[6][-1] == "no promise was kept"
    assert days[9][-1] == "no promise was kept; nothing was counted"
    for chart in ("chart-promised-hits", "chart-promised-cost"):
        assert browser.script(f"return document.querySelectorAll('#{chart} .trace').length") == 2
    assert browser.complaints() == []


def test_on_a_phone_nothing_is_cut_off(browser: Browser, dashboard: tuple[DashboardProcess, RedisServer]) -> None:
    with browser.as_phone():
        open_page(browser, dashboard[0], "delay")
        wait_for(lambda: browser.text("#cost-realtime").startswith("$"), "costs", 20)
        assert browser.script("return document.documentElement.scrollWidth") <= 400
        charts = "document.getElementById('promise-charts')"
        browser.script(f"{charts}.scrollIntoView()")
        assert browser.script(f"return {charts}.checkVisibility()")
