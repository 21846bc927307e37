"""The Redis servers of docker/compose.yaml: their settings and users, held by a real server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import yaml

from tests.support.ports import free_port
from tests.support.redis_server import find_redis_binary, missing
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

DOCKER = Path(__file__).parents[2] / "docker"


ROLES = ("api", "worker", "dashboard", "admin")
ROW = "forecache:p:delay:g:1:{0}"


@dataclass
class Server:
    """One of compose's two servers, at a port of this machine, and the folder of the secrets that it was given."""

    name: str
    secrets: Path
    port: int
    process: subprocess.Popen[bytes]

    def client(self, role: str) -> redis.Redis:
        """Return a client by the URL that the services of a role are given."""
        url = (self.secrets / f"{role}_{self.name}_url").read_text()
        at_host = f"@{self.name}:6379/"
        assert at_host in url
        here = url.replace(at_host, f"@127.0.0.1:{self.port}/")
        return redis.Redis.from_url(here, retry=None, decode_responses=True)


@pytest.fixture(params=["broker", "cache"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server by the configuration and the users that compose mounts, in folders of this machine."""
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
        yield Server(name, tmp_path / "secrets", port, process)
    finally:
        process.terminate()
        process.wait(10)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("role", ["worker", "admin"])
def test_a_role_that_does_everything_under_the_prefix_may_do_so_by_its_url(server: Server, role: str) -> None:
    with server.client(role) as own:
        assert own.hset(ROW, "F1", "row") == 1
        assert own.hget(ROW, "F1") == "row"
        assert own.lpush("forecache:forecache.batch", "message") == 1
        assert own.eval("return redis.call('INCR', KEYS[1])", 1, "forecache:p:delay:seq") == 1
        assert own.delete(ROW) == 1


def test_the_dashboard_reads_and_sends_and_writes_no_rows(server: Server) -> None:
    with server.client("worker") as worker, server.client("dashboard") as own:
        worker.hset(ROW, "F1", "row")
        assert own.hget(ROW, "F1") == "row"
        assert own.lpush("forecache:forecache.batch", "message") == 1
        with pytest.raises(redis.exceptions.NoPermissionError):
            own.hset(ROW, "F1", "forged")


def test_the_api_reads_what_workers_write_and_writes_messages_and_pointers_but_no_rows(server: Server) -> None:
    with server.client("worker") as worker, server.client("api") as api:
        worker.hset(ROW, "F1", "row")
        assert api.hget(ROW, "F1") == "row"
        assert api.lpush("forecache:forecache.realtime", "message") == 1
        assert api.hset("forecache:p:delay:pointer", "current", 1) == 1
        assert api.set("forecache:p:delay:o:F1", "answer")
        for refused in (lambda: api.hset(ROW, "F1", "forged"), lambda: api.delete(ROW)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                refused()
        assert worker.hget(ROW, "F1") == "row"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_reaches_other_keys_or_rules_the_server(server: Server, role: str) -> None:
    with server.client(role) as own:
        for words in (
            ("GET", "somebody-elses"), ("SET", "somebody-elses", "1"), ("KEYS", "*"), ("FLUSHALL",), ("FLUSHDB",),
            ("CONFIG", "SET", "maxmemory", "1"), ("SHUTDOWN",), ("ACL", "SETUSER", "me", "on"), ("ACL", "LIST"),
            ("REPLICAOF", "127.0.0.1", "1"), ("MODULE", "LIST"), ("CLIENT", "LIST"),
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.execute_command(*words)


def test_people_and_nobody_else_read_the_settings_by_which_nothing_is_evicted(server: Server) -> None:
    with server.client("admin") as admin:
        assert admin.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert admin.config_get("appendonly") == {"appendonly": "yes"}
    for role in ("api", "worker", "dashboard"):
        with server.client(role) as own, pytest.raises(redis.exceptions.NoPermissionError):
            own.config_get("maxmemory-policy")


def test_the_health_check_of_compose_passes_while_the_server_lives_and_not_after(server: Server) -> None:
    if shutil.which("redis-cli") is None:
        missing("redis-cli")
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    _, command = compose["services"]["cache"]["healthcheck"]["test"]
    here = command.replace("redis-cli ", f"redis-cli -p {server.port} ")
    assert subprocess.run(["sh", "-c", here], check=False, timeout=30).returncode == 0
    server.process.terminate()
    server.process.wait(10)
    assert subprocess.run(["sh", "-c", here], check=False, timeout=30).returncode != 0


def test_nobody_gets_in_as_the_default_user_or_with_another_roles_or_servers_password(server: Server) -> None:
    other = {"broker": "cache", "cache": "broker"}[server.name]
    passwords = [None, "guess", _password(server, "worker", server.name)]
    tries: list[tuple[str | None, str | None]] = [(None, password) for password in passwords]
    tries += [("forecache-worker", _password(server, "api", server.name))]
    tries += [("forecache-worker", _password(server, "worker", other))]
    for user, password in tries:
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=server.port, username=user, password=password, retry=None).ping()


def test_the_user_of_the_health_check_may_ping_and_nothing_else(server: Server) -> None:
    client = redis.Redis(port=server.port, username="health", password="-", retry=None)
    assert client.ping()
    for command in (("GET", "k"), ("INFO",), ("ACL", "WHOAMI"), ("PUBLISH", "c", "m")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


def _password(server: Server, role: str, name: str) -> str:
    password = urlsplit((server.secrets / f"{role}_{name}_url").read_text()).password
    assert password
    return password
