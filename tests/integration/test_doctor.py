"""`forecache doctor` against a real Redis in all its moods, and real workers that live and die."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.doctor.checkup import check_up
from app.cli.doctor.findings import Check, Finding, Status
from app.cli.doctor.tables import filters_to_come
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.settings import ModelSettings, Settings
from inference.store import Table
from tests.support.models import export_models, float_features, write_features
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack, run_cli
from tests.support.waiting import LONG_S, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own, since tests bend its configuration."""
    own = RedisServer(tmp_path / "redis").start()
    try:
        yield own
    finally:
        own.stop()


def settings(url: str, **models: Any) -> Settings:
    return Settings.model_validate({"redis": {"url": url, "cache_url": url}, "models": models})


def of(check: Check, found: list[Finding]) -> dict[str, Finding]:
    """The concern's findings by their details."""
    return {one.detail: one for one in found if one.check is check}


def test_a_bent_configuration_is_seen(server: RedisServer) -> None:
    with Client(port=server.port) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("save", "")
        client.replicaof("127.0.0.1", str(free_port()))
    found = of(Check.REDIS, check_up(settings(server.url())))
    assert found["maxmemory-policy is allkeys-lru: it may throw predictions and runs away"].status is Status.ERROR
    assert found["not persistent: a restart loses all predictions until the next run"].status is Status.WARNING
    assert found["it is a replica, which takes no writes"].status is Status.ERROR


def test_the_right_password_passes_and_a_wrong_one_is_named_but_not_shown(server: RedisServer) -> None:
    with Client(port=server.port) as client:
        client.config_set("requirepass", "hush-hush")
    right = f"redis://:hush-hush@127.0.0.1:{server.port}/0"
    assert "evicts nothing (noeviction)" in of(Check.REDIS, check_up(settings(right)))
    for wrong in (right.replace("hush-hush", "wrong-word"), server.url()):
        found = check_up(settings(wrong))
        assert of(Check.REDIS, found)["it refuses the user or the password"].status is Status.ERROR
        assert "wrong-word" not in json.dumps([one.to_json() for one in found])


def test_a_server_that_takes_connections_and_never_answers_does_not_hold_the_command_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        found = of(Check.REDIS, check_up(settings(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")))
        assert time.monotonic() - started < LONG_S
    assert found["no answer within 2 s"].status is Status.ERROR


def test_memory_is_judged_by_what_rows_really_take(server: RedisServer, tmp_path: Path) -> None:
    rows = 20_000
    pq.write_table(pa.table({"entity_id": [str(n) for n in range(rows)]}), tmp_path / "t.parquet")
    own = settings(server.url(), delay={"path": "m", "features": str(tmp_path / "t.parquet")})
    with Client(port=server.port) as client:
        table = Table(
            client, Keys("forecache").table(TableKind.PREDICTIONS, "delay"), kind=TableKind.PREDICTIONS, model="delay"
        )
        manifest = table.generations.begin(
            [TensorSpec("y", DType.FLOAT32)], rows_expected=rows, model_version=1, contract_hash="", keep_s=3600
        )
        before = client.info("memory")["used_memory"]
        table.generations.write(
            manifest, pa.array([str(n) for n in range(rows)]), {"y": np.zeros(rows, np.float32)}, np.zeros(rows)
        )
        taken = client.info("memory")["used_memory"] - before
        table.generations.publish(manifest.number)
        (line,) = [text for text in of(Check.REDIS, check_up(own)) if "generations" in text]
        told = float(line.split(" take ")[1].split()[0]) * (1e6 if " MB (measured)" in line else 1e3)
        # Redis takes up to a fifth more than is told, Valkey less: its hashes have no pointers
        assert told == pytest.approx(3 * taken, rel=0.35)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + taken)
    assert any(text.startswith("too little: ") for text in of(Check.REDIS, check_up(own)))


def test_filters_of_the_access_log_that_are_not_there_yet_are_counted(server: RedisServer) -> None:
    rows, a_day, keys = 1_000_000, 1_500_000, Keys("forecache")

    def to_come(**model: Any) -> float:
        return filters_to_come(client, keys, "delay", ModelSettings.model_validate({"path": "m", **model}), rows)

    with Client(port=server.port) as client:
        client.flushall()
        assert to_come() == 30 * a_day
        client.setrange(keys.asked_filter("delay", int(client.now() // 86_400)), a_day - 1, b"1")
        five_days = {"asked_days": 5}
        assert to_come(access_log=five_days) == 4 * a_day
        chosen = {"entities": "asked within 3d", "feature_table": True}
        # and the ids of three sources, by which new entities are told
        assert to_come(access_log=five_days, batch=chosen) == 4 * a_day + 3 * 2 * rows
        assert to_come(access_log={"enabled": False}) == 0


def test_the_command_prints_json_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text('[redis]\nurl = "redis://127.0.0.1:1/0"\n')
    done = run_cli(tmp_path, "doctor", "--json")
    assert done.returncode == 1
    assert done.stderr == ""
    lines = json.loads(done.stdout)
    assert {frozenset(line) for line in lines} == {frozenset({"check", "subject", "status", "detail", "fix"})}
    assert {line["status"] for line in lines} == {"ok", "warning", "error"}
    assert all(line["fix"] for line in lines if line["status"] != "ok")


@pytest.mark.slow
def test_living_workers_are_seen_with_their_versions_and_a_killed_one_is_missed(tmp_path: Path) -> None:
    export_models({tmp_path / "m" / "1": "dense:4:0"})
    write_features(tmp_path / "m", float_features(4))
    features = {f"f{n}": np.zeros(100, np.float32) for n in range(4)}
    pq.write_table(pa.table({"entity_id": [str(n) for n in range(100)], **features}), tmp_path / "t.parquet")
    with Stack(tmp_path, '[models.delay]\npath = "m"\nfeatures = "t.parquet"\n') as stack:
        stack.start("realtime", "gpu", "maintenance")

        def all_ready() -> list[Finding] | None:
            found = check_up(stack.settings)
            lines = [one for one in found if one.check is Check.WORKERS and "alive, pid" in one.detail]
            return found if sum("holds delay 1" in one.detail for one in lines) == 2 and len(lines) == 3 else None

        found = wait_for(all_ready, "three workers", 90)
        assert [one for one in found if one.status is Status.ERROR] == []
        pid = stack.processes["realtime"].pid
        stack.kill("realtime")
        stack.stop("gpu", signal.SIGTERM)

        def missed() -> list[str] | None:
            errors = [one.detail for one in check_up(stack.settings) if one.status is Status.ERROR]
            # before its sign of life has run out, a message through its queue is what is not answered
            gone = [detail for detail in errors if detail.startswith("no worker is alive")]
            return gone if len(gone) == 2 else None

        batch, realtime = wait_for(missed, "the loss to be noticed", 40)
        # one that was told to end is not looked for
        assert batch.startswith("no worker is alive (none was within the last hour)")
        assert f"pid {pid} was heard " in realtime
        assert stack.cli("doctor").returncode == 1
