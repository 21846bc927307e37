"""Pages of other sites, which a browser lets send requests to the API and to Flower, get nothing done there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference.errors import SettingsError
from inference.settings import load_settings
from tests.integration.test_api import Deployment, assert_problem, fresh, it  # noqa: F401 - `it` is a fixture
from tests.integration.test_api_connections import Served, serving
from tests.support.dashboard import DashboardProcess
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KEYS = {"shop": {"hash": f"sha256:{'0' * 64}", "scopes": ["read", "admin"]}}
EVIL = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def flower(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    process = DashboardProcess(tmp_path_factory.mktemp("flower"), redis_server.url(1))
    process.start().wait_ready()
    try:
        yield process
    finally:
        process.stop()


async def raw(served: Served, path: str, *hosts: str, version: str = "1.1") -> int:
    """Return the status of the answer to a request with these Host headers, as they are."""
    lines = [f"GET {path} HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    reader, writer = await served.raw("\r\n".join(lines).encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_without_keys_only_addresses_and_known_names_are_answered(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    known = ["localhost", "LocalHost:8000", "localhost.:8000", "127.0.0.1", "127.0.0.1:8000", "10.1.2.3:8000", "[::1]"]
    known += ["[::1]:8000", "[fd00::7]:80", "[::ffff:127.0.0.1]", "::1", "0.0.0.0:8000", "", "127.0.0.1."]
    known += ["api", "API:8000", "api.", "shop.example.com", "a.b.example.com.:443", "my_api"]
    others = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost"]
    others += [
        "localhost:8000@evil.example",
        "example.com",
        "badexample.com",
        "[evil.example]",
        "localhost:x",
        "api.evil",
    ]
    others += [
        "1.2.3.4.5",
        "[::1",
        "::1]",
        "x.localhost.evil",
        "127.0.0.1/evil.example",
        "\u00fc.example",
        ".",
        ":8000:1",
    ]
    async with serving(it, hosts=["api", "*.Example.com", "my_api."]) as served:
        for path in ("/predict/a", "/runs", "/metrics"):
            for _ in range(2):  # what passed once is remembered
                statuses = {host: await raw(served, path, host) for host in (*known, *others)}
                assert statuses == dict.fromkeys(known, 200) | dict.fromkeys(others, 403)
        assert await raw(served, "/runs", version="1.0") == 200
        assert await raw(served, "/runs", "evil.example", "localhost") == 403
        assert await raw(served, "http://localhost/runs", "evil.example") == 403
        # probes tell nothing, and load balancers send what they like
        assert await raw(served, "/health/live", "anything.example") == 200
        forwarded = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}
        refused = await served.http.get("/runs", headers=forwarded)
        assert_problem(refused, 403, "forbidden")
        assert all(word in refused.json()["detail"] for word in ("evil.example", "[api] hosts", "forecache keys new"))
        assert (await served.http.get("/v2", headers=forwarded)).status_code == 403
        put = await served.http.put("/features/a", json={"features": {"x": 1}}, headers={"Host": "evil.example"})
        assert put.status_code == 403
    async with serving(it, hosts=["*"]) as served:
        assert await raw(served, "/runs", "evil.example") == 200


async def test_with_keys_a_name_says_nothing(it: Deployment) -> None:  # noqa: F811
    async with serving(it, keys=KEYS) as served:
        assert await raw(served, "/runs", "evil.example") == 401


PATHS = ["/runs", "/models/delay/rollback", "/predict", "/predictions", "/v1/models/delay:predict"]
PATHS += ["/v2/models/delay/infer", "/runs/r1/cancel", "/nowhere"]


OF_OTHERS: list[dict[str, str]] = [
    EVIL,
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "something-new"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://"},
    {"Origin": "localhost"},
    {"Origin": "http://[localhost"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost"},
    {"Origin": "file://"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example", "X-Forwarded-Host": "shop.example"},
    {"Origin": "http://evil.example", "X-Forwarded-Host": ""},
]
OF_ITSELF: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://shop.example"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "HTTP://LOCALHOST:8000"},
    {"Origin": "http://localhost", "Host": "localhost:80"},
    {"Origin": "https://localhost", "Host": "localhost:443"},
    {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
    {"Origin": "http://shop.example", "X-Forwarded-Host": "shop.example, inner:8000"},
]


async def test_a_page_of_another_site_changes_nothing(it: Deployment) -> None:  # noqa: F811
    async with serving(it) as served:

        async def ask(method: str, path: str, headers: dict[str, str]) -> int:
            sent = {**TEXT, "Host": "localhost:8000", **headers}
            content = None if method == "GET" else b'{"inputs":[1]}'
            return (await served.http.request(method, path, content=content, headers=sent)).status_code

        for headers in OF_OTHERS:
            for path in PATHS:
                assert await ask("POST", path, headers) == 403, headers
            assert await ask("GET", "/runs", headers) == 200
        for method, path in (
            ("DELETE", "/predictions/x"),
            ("PUT", "/features/a"),
            ("PATCH", "/runs"),
            ("ODD", "/runs"),
        ):
            assert await ask(method, path, EVIL) in (400, 403)
    assert it.runs.started == []
    assert it.workers.calls == it.sent == []


async def test_pages_of_its_own_and_programs_are_served(it: Deployment) -> None:  # noqa: F811
    async with serving(it) as served:
        for headers in OF_ITSELF:
            it.runs.started.clear()
            answer = await served.http.post("/runs", headers={"Host": "localhost:8000", **headers})
            assert answer.status_code == 202, headers


async def test_no_page_of_another_site_shows_ours_in_a_frame(it: Deployment, flower: DashboardProcess) -> None:  # noqa: F811
    async with serving(it) as served:
        assert (await served.http.get("/docs")).headers["x-frame-options"] == "DENY"
    for path in ("/workers", "/tasks", "/broker", "/runs", "/nowhere"):
        assert flower.get(path).headers["x-frame-options"] == "DENY"


async def test_with_keys_a_page_that_has_one_is_served(it: Deployment) -> None:  # noqa: F811
    async with serving(it, keys=KEYS) as served:
        assert (await served.http.post("/runs", headers=EVIL)).status_code == 401


async def test_no_answer_is_for_other_pages_unless_the_settings_say_so(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    async with serving(it) as served:
        for answer in (
            await served.http.options("/predict", headers=asks),
            await served.http.get("/predict/a", headers=EVIL),
            await served.http.get("/runs", headers=EVIL),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


def allowed_for(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


async def test_pages_of_the_settings_origins_may_ask_and_read_everything(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    shop = {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
    async with serving(it, cors_origins=["https://Shop.example:443"]) as served:
        preflight = await served.http.options("/runs", headers={**shop, **asks})
        assert (preflight.status_code, allowed_for(preflight)) == (200, shop["Origin"])
        assert (await served.http.options("/runs", headers={**EVIL, **asks})).status_code == 400
        for path in ("/predict/a", "/predict/b", "/predict/%FF", "/runs", "/nowhere", "/v2", "/predict/a?explain=x"):
            assert allowed_for(await served.http.get(path, headers=shop)) == shop["Origin"], path
            assert allowed_for(await served.http.get(path, headers=EVIL)) is None
            assert allowed_for(await served.http.get(path)) is None
        refused = await served.http.post("/runs", headers=EVIL)
        assert (refused.status_code, "[api] cors_origins" in refused.json()["detail"]) == (403, True)
        assert (await served.http.post("/runs", headers=shop)).status_code == 202
        assert (await served.http.get("/runs", headers={**shop, "Host": "evil.example"})).status_code == 403
    async with serving(it, cors_origins=["*"], keys=KEYS) as served:
        preflight = await served.http.options("/runs", headers={**EVIL, **asks})
        assert (preflight.status_code, allowed_for(preflight)) == (200, "*")
        refused = await served.http.post("/runs", headers=EVIL)
        assert (refused.status_code, allowed_for(refused)) == (401, "*")
        assert "access-control-allow-credentials" not in refused.headers


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('hosts = ["http://api"]', "hosts: 'http://api' is no name of a host"),
        ('hosts = ["api:8000"]', "without scheme, port and path"),
        ('hosts = ["a.*.example"]', "is no name of a host"),
        ('hosts = ["b\u00fccher.example"]', "xn--"),
        ('hosts = [""]', "is no name of a host"),
        ('cors_origins = ["shop.example"]', "cors_origins: 'shop.example' is no origin"),
        ('cors_origins = ["https://shop.example/"]', "is no origin"),
        ('cors_origins = ["null"]', "is no origin"),
        ('cors_origins = ["https://*.example"]', "is no origin"),
        ('cors_origins = ["*"]', "forecache keys new"),
    ],
)
def test_a_setting_that_would_match_nothing_or_everything_is_one_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "forecache.toml").write_text(f'[api]\n{line}\n[models.m]\npath = "m"\n')
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path / "forecache.toml")
    assert words in refused.value.message
    assert "\n" not in refused.value.message


ROLL_BACK: dict[str, Any] = {"action": "rollback", "model": "delay", "generation": 7}


def test_every_button_of_flower_is_for_its_own_pages(flower: DashboardProcess) -> None:
    with httpx.Client(base_url=flower.url, auth=flower.auth, timeout=20) as browser:
        token = browser.get("/runs").text.split('data-xsrf="')[1].split('"')[0]

        def press(path: str, **headers: str) -> int:
            sent = {"X-XSRFToken": token, "Host": "ops.internal", **headers}
            return browser.post(path, content=json.dumps(ROLL_BACK), headers=sent).status_code

        # a rollback without a generation is a conflict, and no worker or task of these names is there
        for path, status in (
            ("/runs/actions", 409),
            ("/api/worker/shutdown/nobody", 404),
            ("/api/task/apply/nothing", 404),
        ):
            for origin in ("http://evil.example", "null", "http://ops.internal:81"):
                assert press(path, Origin=origin) == 403
                assert press(path, Origin=origin, **{"X-Forwarded-Host": "ops.example"}) == 403
            for site in ("cross-site", "same-site"):
                assert press(path, **{"Sec-Fetch-Site": site}) == 403
            assert press(path) == status
            assert press(path, Origin="http://ops.internal") == status
            assert press(path, Origin="https://ops.internal", **{"Sec-Fetch-Site": "same-origin"}) == status
            # behind a proxy that keeps no Host, as Apache
            forwarded = {"Host": "127.0.0.1:5555", "X-Forwarded-Host": "ops.internal"}
            assert press(path, Origin="http://ops.internal", **forwarded) == status
