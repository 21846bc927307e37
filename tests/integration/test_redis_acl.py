"""Everything runs as the users that compose gets of docker/redis/users.acl, and none may do more than it must."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import httpx
import pytest
import redis

from tests.support.flights import write_flights
from tests.support.redis_server import find_redis_binary
from tests.support.stack import ROOT, Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROLES = {
    "maintenance": "worker", "gpu": "worker", "realtime": "worker", "beat": "worker", "api": "api",
    "dashboard": "dashboard",
}  # fmt: skip
ONLOOKER = "s3same"


def url_of(stack: Stack, role: str, database: int = 1) -> str:
    url = (stack.folder / "secrets" / f"{role}_broker_url").read_text()
    return url.replace("@broker:6379/0", f"@127.0.0.1:{stack.redis.port}/{database}")


def as_user(stack: Stack, role: str) -> dict[str, str]:
    return {"FORECACHE_REDIS__URL": url_of(stack, role, 0), "FORECACHE_REDIS__CACHE_URL": url_of(stack, role, 1)}


def client(stack: Stack, role: str) -> redis.Redis:
    return redis.Redis.from_url(url_of(stack, role), retry=None)


def command(stack: Stack, role: str, *words: str) -> subprocess.CompletedProcess[str]:
    return stack.cli(*words, environment=as_user(stack, role))


@pytest.fixture(
    scope="module", params=[pytest.param(7, id="redis7"), pytest.param(9, id="valkey", marks=pytest.mark.slow)]
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("acl")
    stack = Stack(folder, write_flights(folder))
    stack.redis.binary = find_redis_binary(request.param)
    subprocess.run([ROOT / "docker" / "make-secrets.sh", folder / "secrets"], check=True, timeout=30)
    with stack:
        with redis.Redis(port=stack.redis.port) as admin:
            admin.execute_command("ACL", "SETUSER", "onlooker", "on", f">{ONLOOKER}", "~*", "&*", "+@all")
            # the last, `default off`, by what is still `default`
            for line in sorted((folder / "secrets" / "broker_users").read_text().splitlines(), reverse=True):
                admin.execute_command("ACL", "SETUSER", *line.split()[1:])
        for name, role in ROLES.items():
            stack.start(name, environment=as_user(stack, role))
        stack.wait_ready()
        yield stack


def denied(stack: Stack) -> list[str]:
    """What Redis refused: who, and what."""
    with redis.Redis(port=stack.redis.port, username="onlooker", password=ONLOOKER, retry=None) as onlooker:
        entries = onlooker.acl_log()
    return [f"{one['username']}: {one['reason']} {one['object']} ({one['context']})" for one in entries]


def test_the_whole_system_works_and_asks_for_nothing_that_its_users_may_not(stack: Stack) -> None:
    assert command(stack, "worker", "features", "load", "delay", "flights.parquet").returncode == 0
    run = httpx.post(f"{stack.url}/runs", json={}).raise_for_status().json()
    assert stack.wait_run(run["run_id"])["state"] == "published"
    assert httpx.get(f"{stack.url}/predict/F1").json()["outcome"] == "hit_batch"
    assert httpx.get(f"{stack.url}/predict/F2", params={"max_staleness_hours": 0}).json()["outcome"] == "computed"
    job = httpx.post(f"{stack.url}/predictions", json={"entity_ids": ["F1", "F2"]}).headers["location"]
    wait_for(lambda: httpx.get(f"{stack.url}{job}").json()["state"] == "done", "the job's end", 30)
    changed = httpx.put(f"{stack.url}/features/F3", json={"features": {"a": 1000.0}})
    assert changed.json()["applied"], changed.text
    assert httpx.get(f"{stack.url}/predict/F3").json()["outcome"] == "computed"
    explained = httpx.get(f"{stack.url}/predict/F3", params={"explain": "features"}).json()
    assert explained["explanation"]["features"]["a"]["value"] == 1000.0
    second = httpx.post(f"{stack.url}/runs", json={}).raise_for_status().json()
    assert stack.wait_run(second["run_id"])["state"] == "published"
    assert httpx.post(f"{stack.url}/models/delay/rollback").status_code == 200
    forgotten = httpx.delete(f"{stack.url}/entities/F9?wait_s=60", timeout=70)
    assert (forgotten.status_code, forgotten.json()["done"]) == (200, True)
    assert httpx.put(f"{stack.url}/entities/F9").status_code == 200
    assert "forecache_broker_up 1" in httpx.get(f"{stack.url}/metrics").text
    for page in ("hit-rates", "runs", "queues"):
        assert httpx.get(f"{stack.dashboard_url}/{page}", follow_redirects=True).status_code == 200
    assert command(stack, "admin", "doctor").returncode == 0, command(stack, "admin", "doctor").stdout
    assert denied(stack) == []


@pytest.mark.parametrize("role", ["api", "worker", "dashboard", "admin"])
def test_no_user_reaches_what_is_not_forecaches_or_the_server_itself(stack: Stack, role: str) -> None:
    with client(stack, role) as own:
        for words in (
            ("GET", "somebody-elses"), ("SET", "somebody-elses", "1"), ("FLUSHALL",), ("FLUSHDB",),
            ("CONFIG", "SET", "maxmemory", "1"), ("SHUTDOWN",), ("ACL", "SETUSER", "me", "on"),
            ("REPLICAOF", "127.0.0.1", "1"), ("MODULE", "LIST"), ("KEYS", "*"),
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.execute_command(*words)


def test_the_api_cannot_write_the_rows_of_a_run(stack: Stack) -> None:
    with client(stack, "api") as own:
        for key in ("forecache:p:delay:g:1:{0}", "forecache:p:delay:g:12:{345}", "forecache:f:delay:g:1:{0}"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.hset(key, "F1", b"forged")


def test_without_a_user_nothing_is_to_be_had(stack: Stack) -> None:
    with redis.Redis(port=stack.redis.port, retry=None) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.get("forecache:p:delay:pointer")
