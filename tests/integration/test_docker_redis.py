"""The Redis servers of docker/compose.yaml: their settings and users, held by a real server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml

from tests.support.ports import free_port
from tests.support.redis_server import find_redis_binary, missing
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

DOCKER = Path(__file__).parents[2] / "docker"


@pytest.fixture(params=["broker", "cache"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A server by the configuration and the users that compose mounts, in folders of this machine; (port, password)."""
    name: str = request.param
    subprocess.run([DOCKER / "make-secrets.sh", tmp_path / "secrets"], check=True, timeout=30)
    text = (DOCKER / "redis" / f"{name}.conf").read_text()
    text = text.replace("/run/secrets", str(tmp_path / "secrets")).replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "redis.conf").write_text(text)
    port = free_port()
    process = subprocess.Popen(
        [find_redis_binary(7), tmp_path / "redis.conf", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        health = redis.Redis(port=port, username="health", password="-", retry=None)
        wait_for(lambda: _pings(health), f"the {name} Redis")
        url = (tmp_path / "secrets" / f"{name}_url").read_text()
        yield port, url.removeprefix("redis://:").partition("@")[0]
    finally:
        process.terminate()
        process.wait(10)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_the_password_of_the_url_opens_it_and_nothing_is_evicted(server: tuple[int, str]) -> None:
    port, password = server
    client = redis.Redis(port=port, password=password, decode_responses=True)
    assert client.set("k", "v")
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_the_health_check_of_compose_passes_while_the_server_lives_and_not_after(server: tuple[int, str]) -> None:
    port, password = server
    if shutil.which("redis-cli") is None:
        missing("redis-cli")
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    _, command = compose["services"]["cache"]["healthcheck"]["test"]
    here = command.replace("redis-cli ", f"redis-cli -p {port} ")
    assert subprocess.run(["sh", "-c", here], check=False, timeout=30).returncode == 0
    with redis.Redis(port=port, password=password, retry=None) as client:
        client.shutdown(nosave=True)
    assert subprocess.run(["sh", "-c", here], check=False, timeout=30).returncode != 0


def test_without_the_password_nobody_gets_in(server: tuple[int, str]) -> None:
    port, _ = server
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, retry=None).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, password="guess", retry=None).ping()


def test_the_user_of_the_health_check_may_ping_and_nothing_else(server: tuple[int, str]) -> None:
    port, _ = server
    client = redis.Redis(port=port, username="health", password="-", retry=None)
    assert client.ping()
    for command in (("GET", "k"), ("INFO",), ("ACL", "WHOAMI"), ("PUBLISH", "c", "m")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
