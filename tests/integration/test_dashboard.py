"""The dashboard as its users meet it: a real Flower process over a real Redis."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inference.outcomes import Outcome
from inference.redis.clients import Client
from inference.redis.keys import Keys
from tests.support.dashboard import DashboardProcess
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def dashboard(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    process = DashboardProcess(tmp_path_factory.mktemp("dashboard"), redis_server.url(1))
    # what Flower reads from its environment must not open the door
    process.start(FLOWER_UNAUTHENTICATED_API="true", FLOWER_BASIC_AUTH="other:other").wait_ready()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def counters(redis_server: RedisServer) -> Iterator[Client]:
    with Client.from_url(redis_server.url(1)) as client:
        client.flushdb()
        yield client


def count(client: Client, outcome: Outcome, number: int, *, minutes_ago: int = 0) -> None:
    client.hincrby(Keys("forecache").hits("delay", int(time.time() // 60) - minutes_ago), outcome.value, number)


OWN_PAGES = ["/hit-rates", "/hit-rates/data", "/runs", "/runs/data", "/queues", "/queues/data", "/cost", "/cost/data"]
PAGES = ["/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks", *OWN_PAGES]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("auth", [None, ("forecache", "wrong"), ("other", "other"), ("", "")])
def test_nobody_gets_in_without_the_credentials(dashboard, page, auth):
    answer = httpx.get(dashboard.url + page, auth=auth)
    assert answer.status_code == 401
    if auth is None and not page.startswith("/api"):
        assert answer.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize("page", ["/", "/tasks", "/broker", "/metrics", "/api/tasks", *OWN_PAGES])
def test_every_page_opens_with_the_credentials(dashboard, counters, page):
    assert dashboard.get(page).status_code == 200


def test_all_of_flowers_pages_carry_the_tab(dashboard):
    for page in ("/", "/tasks", "/broker", "/hit-rates"):
        assert 'href="/hit-rates"' in dashboard.get(page).text


def test_the_page_loads_nothing_from_elsewhere_and_its_parts_are_there(dashboard):
    page = dashboard.get("/hit-rates")
    assert not any(f'{attribute}="http' in page.text for attribute in ("src", "data-url"))
    assert page.headers["X-Frame-Options"] == "DENY"
    for part in (
        "/forecache/hit-rates.js",
        "/forecache/page.js",
        "/forecache/forecache.css",
        "/forecache/plotly.min.js",
    ):
        assert dashboard.get(part).status_code == 200


def test_the_figures_are_those_of_the_minute_counters(dashboard, counters):
    count(counters, Outcome.HIT_BATCH, 70)
    count(counters, Outcome.COMPUTED, 30)
    count(counters, Outcome.SHED, 100, minutes_ago=30)
    count(counters, Outcome.HIT_REALTIME, 200, minutes_ago=600)
    model = dashboard.get("/hit-rates/data").json()["model"]
    assert [window["total"] for window in model["windows"]] == [100, 200, 400]
    assert [window["hit_rate"] for window in model["windows"]] == [0.7, 0.35, 0.675]
    assert model["windows"][0]["outcomes"] == {outcome.value: 0 for outcome in Outcome} | {
        "hit_batch": 70,
        "computed": 30,
    }
    assert (model["model"], model["serving"]["generation"], model["serving"]["active_version"]) == ("delay", None, None)
    assert sum(point["total"] for point in model["points"][-2:]) == 100, "or a minute has begun meanwhile"
    assert dashboard.get("/runs/data").json()["runs"] == []


@pytest.mark.parametrize(
    ("address", "status"),
    [("?model=<b>", 404), ("?window=2y", 400), ("?window=1h&model=delay", 200), ("?model=" + "x" * 9000, 404)],
)
def test_the_address_chooses_model_and_window_and_nothing_else(dashboard, counters, address, status):
    assert dashboard.get("/hit-rates/data" + address).status_code == status


@pytest.mark.parametrize("page", ["/hit-rates", "/runs", "/queues", "/cost"])
def test_only_what_the_server_itself_sends_may_run_in_our_pages(dashboard, page):
    policy = dashboard.get(page).headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy


def test_a_button_needs_the_pages_token_the_same_site_and_a_sound_request(dashboard, counters):
    with httpx.Client(base_url=dashboard.url, auth=dashboard.auth, timeout=20) as browser:
        page = browser.get("/runs").text
        token = page.split('data-xsrf="')[1].split('"')[0]

        def press(body, **headers):
            return browser.post("/runs/actions", content=body, headers=headers)

        start = json.dumps({"action": "start", "model": "delay"})
        assert press(start).status_code == 403
        assert press(start, **{"X-XSRFToken": "2|aaaa|bbbb|1"}).status_code == 403
        assert press(start, **{"X-XSRFToken": token, "Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert press("{", **{"X-XSRFToken": token}).status_code == 400
        refused = press(start, **{"X-XSRFToken": token})
        assert (refused.status_code, "source" in refused.json()["error"]) == (400, True)
        unknown = press(json.dumps({"action": "cancel", "run_id": "<b>"}), **{"X-XSRFToken": token})
        assert unknown.status_code == 404
    assert counters.keys("forecache:r:*") == []


def test_behind_a_prefix_and_read_only_everything_is_there_but_the_buttons(redis_server, tmp_path):
    process = DashboardProcess(tmp_path, redis_server.url(1), more="url_prefix = '/flower/'\nread_only = true\n")
    process.start().wait_ready(path="/flower/healthcheck")
    try:
        page = process.get("/flower/runs")
        assert 'data-url="/flower/runs/data"' in page.text
        assert 'href="/flower/queues"' in page.text
        assert "read-only" in page.text
        assert process.get("/flower/hit-rates/data").status_code == 200
        assert process.get("/flower/forecache/plotly.min.js").status_code == 200
        assert process.get("/hit-rates").status_code == 404
        assert httpx.get(process.url + "/flower/runs").status_code == 401
        token = page.text.split('data-xsrf="')[1].split('"')[0]
        pressed = httpx.post(
            process.url + "/flower/runs/actions", auth=process.auth, cookies=dict(page.cookies),
            headers={"X-XSRFToken": token}, json={"action": "start", "model": "delay"},
        )  # fmt: skip
        assert (pressed.status_code, "read-only" in pressed.json()["error"]) == (403, True)
    finally:
        process.stop()


def test_the_log_says_where_it_is_and_never_the_password(dashboard):
    assert f"{dashboard.url}/hit-rates" in dashboard.log()
    assert "sesame" not in dashboard.log()


def test_without_a_password_one_is_generated_into_a_private_file(redis_server, tmp_path):
    process = DashboardProcess(tmp_path, redis_server.url(1), password=None).start().wait_ready()
    try:
        file = tmp_path / ".forecache" / "dashboard.json"
        written = json.loads(file.read_text())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert process.get("/hit-rates").status_code == 401
        process.auth = (written["username"], written["password"])
        assert process.get("/hit-rates").status_code == 200
        assert str(file) in process.log()
        assert written["password"] not in process.log()
    finally:
        process.stop()


def test_a_taken_port_is_one_line_that_names_it_and_leaves_nothing_behind(dashboard, redis_server, tmp_path):
    late = DashboardProcess(tmp_path, redis_server.url(1), password=None)
    settings = (tmp_path / "forecache.toml").read_text().replace(str(late.port), str(dashboard.port))
    (tmp_path / "forecache.toml").write_text(settings)
    late.start()
    assert late.process
    assert late.process.wait(40) == 1
    assert f"port {dashboard.port} is taken" in late.log()
    assert "[dashboard] port" in late.log()
    assert "Traceback" not in late.log()
    assert not (tmp_path / ".forecache").exists()


def test_it_starts_and_stays_while_redis_is_away_says_so_and_recovers(tmp_path: Path):
    server = RedisServer(tmp_path / "redis")
    process = DashboardProcess(tmp_path, server.url()).start().wait_ready()
    try:
        assert process.get("/hit-rates").status_code == 200
        away = process.get("/hit-rates/data")
        assert away.status_code == 503
        assert "Redis" in away.json()["error"]
        server.start()
        end = time.monotonic() + 20
        while process.get("/hit-rates/data").status_code != 200:
            assert time.monotonic() < end, process.log()
            time.sleep(0.2)
        assert process.stop() == 0
    finally:
        process.stop()
        server.stop()


def test_a_sigterm_ends_it_quickly_also_while_redis_is_away(tmp_path: Path):
    process = DashboardProcess(tmp_path, "redis://127.0.0.1:1/0").start().wait_ready()
    process.get("/hit-rates/data")
    assert process.stop(timeout_s=10) == 0
