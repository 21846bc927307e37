"""The API and Flower under a path of a proxy: ids, addresses and buttons are those that were meant."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from inference.errors import SettingsError
from inference.settings import load_settings
from tests.integration.test_api import Deployment, fresh
from tests.integration.test_api_connections import serving
from tests.support.dashboard import DashboardProcess
from tests.support.ports import free_port
from tests.support.proxies import documented, haproxy, nginx
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

IDS = [
    "a",
    "a/b",
    "a//b",
    "//",
    "x/../a",
    "a%2Fb",
    "a?b#c",
    "a b+c",
    "\u00fc",
    "u\u0308",
    "🚀",
    "..a",
    "50%",
    "a;b=c",
    "\\",
]


def proxy(name: str, folder: Path, *, listen: int, api: int, dashboard: int = 1) -> AbstractContextManager[None]:
    block = documented(name, listen=listen, api=api, dashboard=dashboard)
    return (nginx if name == "nginx" else haproxy)(folder, block, listen)


@asynccontextmanager
async def proxied(name: str, it: Deployment, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the API that is shown at /forecache by the documented configuration."""
    port = free_port()
    async with serving(it, root_path="/forecache") as served:
        with proxy(name, folder, listen=port, api=served.port):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/forecache") as http:
                yield http


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
async def test_every_id_is_asked_for_as_it_is(it: Deployment, tmp_path: Path, name: str) -> None:
    it.reader.entries.update({entity_id: fresh(float(number)) for number, entity_id in enumerate(IDS)})
    async with proxied(name, it, tmp_path) as http:
        for number, entity_id in enumerate(IDS):
            answer = (await http.get(f"/predict/{quote(entity_id, safe='')}")).json()
            assert (answer["entity_id"], answer["prediction"]) == (entity_id, float(number))


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
async def test_addresses_in_answers_lead_through_the_proxy(it: Deployment, tmp_path: Path, name: str) -> None:
    async with proxied(name, it, tmp_path) as http:
        accepted = await http.post("/predictions", json={"entity_ids": ["1"]})
        assert accepted.headers["location"] == accepted.json()["status_url"]
        there = httpx.URL(str(http.base_url)).join(accepted.json()["status_url"])
        assert (await http.get(there)).json()["state"] == "queued"
        started = await http.post("/runs", json={"model": "delay"})
        assert (await http.get(http.base_url.join(started.headers["location"]))).json()["run_id"] == "r1"
        assert "url: '/forecache/openapi.json'" in (await http.get("/docs")).text
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/forecache"}]
        assert (await http.head("/health/ready")).status_code == 200
        assert (await http.put("/runs")).headers["allow"] == "GET, POST"


async def test_requests_are_understood_with_the_path_and_without_it(it: Deployment) -> None:
    it.reader.entries.update({"a": fresh(1.5), "forecache/a": fresh(2.5), "b": fresh(3.5)})
    async with serving(it, root_path="/forecache") as served:
        for path, value in (
            ("/forecache/predict/a", 1.5),
            ("/predict/a", 1.5),
            ("/forecache/predict/forecache%2Fa", 2.5),
            ("/predict/forecache%2Fa", 2.5),
            ("/forecache/forecache/forecache/predict/a", 1.5),  # not one path to the gate and another to the routes
        ):
            for _ in range(2):
                assert (await served.http.get(path)).json()["prediction"] == value
        assert (await served.http.get("/forecache/predict/%FF")).status_code == 400
        assert (await served.http.get("/forecache/v1/nothing")).json() == {
            "error": "Malformed request: GET /v1/nothing"
        }
        assert (await served.http.get("/forecache/v2/models/stats")).status_code == 200
        for path in ("/forecache", "/forecachepredict/a"):
            assert (await served.http.get(path)).status_code == 404


async def test_keys_are_asked_for_under_the_path_as_without_it(it: Deployment) -> None:
    keys = {"shop": {"hash": "sha256:" + "0" * 64, "scopes": ["read"]}}
    async with serving(it, root_path="/forecache", keys=keys) as served:
        for path in ("/predict/a", "/metrics", "/runs", "/docs"):
            for root in ("", "/forecache"):
                assert (await served.http.get(root + path)).status_code == 401
        assert (await served.http.get("/forecache/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("root_path", "words"),
    [
        ("forecache", "with a / at its start"),
        ("/forecache/", "none at its end"),
        ("/", "is no path"),
        ("/a//b", "is no path"),
        ("/\u00fc", "is no path"),
        ("/a/../b", "is no path"),
        ("/predict", "choose another name"),
        ("/v2/x", "choose another name"),
    ],
)
def test_a_root_path_that_cannot_be_is_one_line(tmp_path: Path, root_path: str, words: str) -> None:
    (tmp_path / "forecache.toml").write_text(f'[api]\nroot_path = "{root_path}"\n[models.m]\npath = "m"\n')
    with pytest.raises(SettingsError, match=r"\[api\]: root_path: ") as refused:
        load_settings(tmp_path / "forecache.toml")
    assert words in refused.value.message


@pytest.fixture(scope="module")
def flower(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    process = DashboardProcess(
        tmp_path_factory.mktemp("flower"), redis_server.url(1), more="url_prefix = 'ops/flower'\n"
    )
    process.start().wait_ready(path="/ops/flower/healthcheck")
    try:
        yield process
    finally:
        process.stop()


def press(http: httpx.Client, root: str, **headers: str) -> httpx.Response:
    """Open the page of runs and press a button on it, as a browser does over plain HTTP."""
    token = http.get(f"{root}/runs", headers=headers).text.split('data-xsrf="')[1].split('"')[0]
    body = {"action": "rollback", "model": "delay", "generation": 7}
    sent = {"X-XSRFToken": token, "Origin": "http://ops.internal", **headers}
    return http.post(f"{root}/runs/actions", content=json.dumps(body), headers=sent)


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_flowers_buttons_work_through_the_documented_proxy(flower: DashboardProcess, tmp_path: Path, name: str) -> None:
    port = free_port()
    with (
        proxy(name, tmp_path, listen=port, api=1, dashboard=flower.port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=flower.auth, timeout=20) as http,
    ):
        pressed = press(http, "/ops/flower", Host="ops.internal")
        assert (pressed.status_code, "generation" in pressed.json()["error"]) == (409, True)


def test_flowers_prefix_without_its_last_slash_leads_on(flower: DashboardProcess) -> None:
    """As typed, and as in https://github.com/mher/flower/issues/1207."""
    led = httpx.get(f"http://127.0.0.1:{flower.port}/ops/flower", auth=flower.auth, timeout=20)
    assert (led.status_code, led.headers.get("location")) == (302, "/ops/flower/")


def test_flower_says_what_a_proxy_leaves_out(flower: DashboardProcess, tmp_path: Path) -> None:
    port = free_port()
    servers = f"""server {{ listen 127.0.0.1:{port};
        location /ops/flower/ {{ proxy_pass http://127.0.0.1:{flower.port}; }}
        location /stripped/ {{ proxy_pass http://127.0.0.1:{flower.port}/; }} }}"""
    with (
        nginx(tmp_path, servers, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=flower.auth, timeout=20) as http,
    ):
        refused = press(http, "/ops/flower", Host="ops.internal")
        assert refused.status_code == 403
        assert "let the proxy pass the Host header on" in refused.json()["error"]
        assert "ops.internal" in refused.json()["error"]
        # as Apache's mod_proxy sends it
        assert press(http, "/ops/flower", **{"X-Forwarded-Host": "ops.internal"}).status_code == 409
        for answer in (http.get("/stripped/runs"), http.get("/stripped/"), http.post("/stripped/runs/actions")):
            assert (answer.status_code, "/ops/flower/" in answer.text) == (404, True)
            assert "must leave that in the path" in answer.text


def test_every_refusal_of_a_button_is_json(flower: DashboardProcess) -> None:
    with httpx.Client(base_url=f"{flower.url}/ops/flower", auth=flower.auth, timeout=20) as http:
        for headers in (
            {},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://evil.example"},
            {"X-XSRFToken": "2|a|b"},
        ):
            refused = http.post("/runs/actions", content="{}", headers=headers)
            assert (refused.status_code, bool(refused.json()["error"])) == (403, True)
        assert http.get("/runs/actions").status_code == 405
        assert http.get("/runs/actions").json()["error"]
