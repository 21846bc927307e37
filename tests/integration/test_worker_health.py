"""What a container's health check says of its worker, by the signs of life in a real Redis."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from inference.monitoring.presence import Presence, WorkerBeat
from inference.redis.clients import Client
from inference.redis.keys import Keys
from tests.support.ports import free_port
from workers.health import main

pytestmark = pytest.mark.integration

WORKER = WorkerBeat(
    name="realtime@here", process="realtime", queues=("realtime",), host=socket.gethostname(), pid=1, release="1.0",
    started_at=1000.0, ready=True, versions={},
)  # fmt: skip


@pytest.fixture
def presence(redis_client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Presence:
    where = redis_client.connection_pool.connection_kwargs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORECACHE_REDIS__CACHE_URL", f"redis://{where['host']}:{where['port']}/{where.get('db', 0)}")
    monkeypatch.setenv("FORECACHE_REDIS__PREFIX", "t")
    return Presence(redis_client, Keys("t"))


def test_a_worker_of_this_host_that_beats_is_healthy(presence: Presence, capsys: pytest.CaptureFixture[str]) -> None:
    presence.beat(WORKER)
    assert main() == 0
    assert capsys.readouterr().out == "realtime@here is alive and takes tasks\n"


def test_a_worker_that_still_loads_its_models_is_healthy(
    presence: Presence, capsys: pytest.CaptureFixture[str]
) -> None:
    presence.beat(replace(WORKER, ready=False))
    assert main() == 0
    assert "loads its models" in capsys.readouterr().out


def test_a_worker_that_nobody_has_heard_of_is_not_healthy_though_another_hosts_is(
    presence: Presence, capsys: pytest.CaptureFixture[str]
) -> None:
    presence.beat(replace(WORKER, host="elsewhere"))
    assert main() == 1
    assert "no worker on" in capsys.readouterr().out


def test_an_outage_of_redis_gives_no_reason_to_restart_a_worker(
    presence: Presence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORECACHE_REDIS__CACHE_URL", f"redis://127.0.0.1:{free_port()}/0")
    assert main() == 0
    assert capsys.readouterr().out.startswith("cannot be told: Redis did not answer")


def test_settings_that_cannot_be_used_are_no_health(
    presence: Presence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORECACHE_REDIS__CACHE_URL_FILE", "/run/secrets/nothing")
    assert main() == 1
    assert "FORECACHE_REDIS__CACHE_URL" in capsys.readouterr().out
