"""Keys of the API, over HTTP and as the command makes them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import create_app
from app.http import listen
from inference.errors import SettingsError
from inference.settings import ApiSettings, Settings
from tests.integration.test_api import Deployment, fresh, it  # noqa: F401 - `it` is a fixture
from tests.support.command import forecache_here
from tests.support.stack import run_cli

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Key:
    text: str
    settings: dict[str, Any]

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


def new_key(folder: Path, *arguments: str) -> Key:
    """Have the command make a key, and read the block that it tells to add as a user would."""
    done = forecache_here(folder, "keys", "new", "shop", *arguments)
    assert done.returncode == 0, done.stderr
    block = done.stderr[done.stderr.index("[api.keys") :]
    # a thread that an earlier test left may have written a line of its own
    return Key(done.stdout.split()[-1], tomllib.loads(block)["api"]["keys"])


@asynccontextmanager
async def serving(it: Deployment, keys: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:  # noqa: F811
    models = {"delay": {"path": "m", "realtime": {"timeout_ms": 30_000}}}
    settings = Settings.model_validate({"api": {"keys": keys}, "models": models})
    app = create_app(settings, open_process=it.open_process)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client


ROUTES = [
    ("GET", "/runs/r1/diff", "read"),
    ("POST", "/runs/r1/diff", "admin"),
    ("GET", "/predict/a", "read"),
    ("POST", "/predict", "read"),
    ("GET", "/hit-rate", "read"),
    ("GET", "/metrics", "read"),
    ("GET", "/docs", "read"),
    ("GET", "/openapi.json", "read"),
    ("GET", "/runs", "read"),
    ("GET", "/nowhere", "read"),
    ("POST", "/predictions", "enqueue"),
    ("DELETE", "/predictions/x", "enqueue"),
    ("PUT", "/features", "write"),
    ("PUT", "/features/x/y", "write"),
    ("POST", "/runs", "admin"),
    ("POST", "/models/delay/rollback", "admin"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_each_route_wants_a_key_with_its_scope(
    it: Deployment,  # noqa: F811
    tmp_path: Path,
    method: str,
    path: str,
    scope: str,
) -> None:
    others = [f"--scope={other}" for other in ("read", "enqueue", "write", "admin") if other != scope]
    right, wrong = new_key(tmp_path, f"--scope={scope}"), new_key(tmp_path, *others)
    keys = {"right": right.settings["shop"], "wrong": wrong.settings["shop"]}
    async with serving(it, keys) as http:
        bare = await http.request(method, path)
        unknown = await http.request(method, path, headers={"X-API-Key": right.text + "x"})
        lacking = await http.request(method, path, headers=wrong.bearer)
        allowed = await http.request(method, path, headers={"X-API-Key": right.text})
    assert [answer.status_code for answer in (bare, unknown, lacking)] == [401, 401, 403]
    assert bare.headers["www-authenticate"] == "Bearer"
    assert (bare.json()["code"], lacking.json()["code"]) == ("unauthorized", "forbidden")
    assert scope in lacking.json()["detail"]
    assert allowed.status_code not in (401, 403)


@pytest.mark.parametrize("path", ["/v1/models/delay:predict", "/v2/models/delay/infer"])
async def test_the_serving_protocols_want_a_reading_key_and_refuse_in_their_own_form(
    it: Deployment,  # noqa: F811
    tmp_path: Path,
    path: str,
) -> None:
    reads, runs = new_key(tmp_path, "--rate", "1/hour"), new_key(tmp_path, "--scope=admin")
    async with serving(it, {"reads": reads.settings["shop"], "runs": runs.settings["shop"]}) as http:
        answers = [await http.post(path, headers=key) for key in ({}, runs.bearer, reads.bearer, reads.bearer)]
        probe = await http.get("/v2/health/live")
    assert [answer.status_code for answer in answers] == [401, 403, 400, 429]
    assert [list(answer.json()) for answer in answers] == [["error"]] * 4
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert int(answers[3].headers["retry-after"]) > 3500
    assert probe.json() == {"live": True}


async def test_a_key_serves_and_probes_need_none(it: Deployment, tmp_path: Path) -> None:  # noqa: F811
    key = new_key(tmp_path)
    it.reader.entries["a"] = fresh(4.0)
    async with serving(it, key.settings) as http:
        answer = await http.get("/predict/a", headers=key.bearer)
        assert (answer.status_code, answer.json()["prediction"]) == (200, 4.0)
        assert (await http.get("/health/live")).status_code == 200


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    it: Deployment,  # noqa: F811
    tmp_path: Path,
) -> None:
    key = new_key(tmp_path, "--rate", "2/hour")
    it.reader.entries["a"] = fresh(4.0)
    async with serving(it, key.settings) as http:
        codes = [(await http.get("/predict/a", headers=key.bearer)).status_code for _ in range(2)]
        refused = await http.get("/predict/a", headers=key.bearer)
    assert codes == [200, 200]
    assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
    assert 3500 <= int(refused.headers["retry-after"]) <= 3600


def test_an_open_address_needs_keys_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="forecache keys new"):
        listen(ApiSettings(host="0.0.0.0", port=1))
    keys = new_key(tmp_path).settings
    with pytest.raises(SettingsError, match="port 1 "):  # past the check of the address: port 1 is not ours to take
        listen(ApiSettings.model_validate({"host": "192.0.2.1", "port": 1, "keys": keys}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scope=root"], "--scope: must be 'read', 'enqueue', 'write', 'forget' or 'admin'"),
        (["--rate=3"], "--rate: '3' is no rate"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run_cli(tmp_path, "keys", "new", "shop", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_key_is_in_the_output_alone_and_the_hash_in_the_settings_alone(tmp_path: Path) -> None:
    made = json.loads(run_cli(tmp_path, "keys", "new", "shop", "--json").stdout)
    assert set(made) == {"name", "key", "hash", "scopes", "rate"}
    settings = Settings.model_validate({"api": {"client_key": made["key"]}})
    assert made["key"] not in repr(settings)
