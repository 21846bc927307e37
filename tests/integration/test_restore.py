"""The documented backup and restore, command by command, into the folder of another Redis."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference.redis.clients import Client
from inference.redis.keys import TableKind
from tests.support.flights import FLIGHTS_TOML, write_flights
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, find_redis_binary, missing
from tests.support.stack import ROOT, Stack, child_environment, run_cli_json
from tests.support.waiting import wait_for
from tests.support.warm_start import start_python

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]

MODEL = "delay"
FRESH = {"max_staleness_hours": "0", "timeout_ms": "20000"}


def documented_commands() -> list[str]:
    """The shell blocks of the section on backups: backup, snapshots, folder of Redis 7, file of Redis 6.2."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Backup\n")[2]
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


BACKUP, SNAPSHOT, FOLDER, FILE = range(4)


def carry_out(number: int, folder: Path, **variables: str) -> None:
    """Run a documented block in a folder."""
    done = subprocess.run(
        ["sh", "-eu", "-c", documented_commands()[number]],
        cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Lost:
    """What a deployment had at the time of its backup, which lies in `folder` with settings, model and table."""

    folder: Path
    answers: dict[str, Any]
    runs: list[str]
    hits: int


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """A deployment with two runs, of which the second is right by one more, a loaded table, and hits. It is gone."""
    if shutil.which("redis-cli") is None:
        missing("redis-cli")
    folder = tmp_path_factory.mktemp("lost")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("gpu", "maintenance", "api")
        for _ in range(2):
            assert stack.cli("batch", "run", MODEL, "--wait").returncode == 0
        assert stack.cli("features", "load", MODEL, "flights.parquet").returncode == 0
        stack.wait_ready()
        answers = {entity: predicted(stack, entity) for entity in ("F0", "F42", "F99")}
        hits = wait_for(lambda: hits_of(stack) >= len(answers) and hits_of(stack), "hits in Redis", 20)
        runs = [run["run_id"] for run in run_cli_json(folder, "batch", "list")]
        carry_out(BACKUP, folder, CACHE_URL=stack.settings.cache_url)
    return Lost(folder, answers, runs, hits)


def predicted(stack: Stack, entity: str, **parameters: str) -> Any:
    answer = httpx.get(f"{stack.url}/predict/{entity}", params=parameters, timeout=30).raise_for_status().json()
    return answer["prediction"], answer["outcome"]


def hits_of(stack: Stack) -> int:
    total: int = httpx.get(f"{stack.url}/hit-rate").raise_for_status().json()["total"]
    return total


def elsewhere(lost: Lost, folder: Path) -> None:
    """Copy what is not in Redis to another machine."""
    shutil.copytree(lost.folder, folder, ignore=shutil.ignore_patterns("redis", ".forecache", "*.log"))


def restored(lost: Lost, folder: Path, block: int, *, appendonly: bool, major: int | None = None) -> Stack:
    """Return a deployment on another machine, whose Redis was given the backup by a documented block."""
    elsewhere(lost, folder)
    stack = Stack(folder, FLIGHTS_TOML)
    stack.redis.binary, stack.redis.appendonly = find_redis_binary(major), appendonly
    stack.redis.folder.mkdir()
    carry_out(block, folder, REDIS_DIR=str(stack.redis.folder))
    return stack


@pytest.mark.parametrize(("block", "appendonly"), [(SNAPSHOT, False), (FOLDER, True)], ids=["snapshots", "appends"])
def test_everything_comes_back(lost: Lost, tmp_path: Path, block: int, appendonly: bool) -> None:
    with restored(lost, tmp_path / "new", block, appendonly=appendonly) as stack:
        stack.start("api", "realtime")
        stack.wait_ready()
        assert {entity: predicted(stack, entity) for entity in lost.answers} == lost.answers
        assert [run["run_id"] for run in run_cli_json(stack.folder, "batch", "list")] == lost.runs
        assert hits_of(stack) >= lost.hits
        assert stack.cli("batch", "rollback", MODEL).returncode == 0
        assert predicted(stack, "F42") == lost.answers["F42"]
        # by the features that were loaded before the backup
        wait_for(lambda: computes(stack), "an answer computed from stored features", 90)
        # what is written from now on outlives the next restart, too
        if appendonly:
            stack.redis.stop()
            stack.redis.start()
            assert [run["run_id"] for run in run_cli_json(stack.folder, "batch", "list")] == lost.runs


def test_redis_6_takes_it_as_one_file(lost: Lost, tmp_path: Path) -> None:
    old = RedisServer(tmp_path / "old", binary=find_redis_binary(6), appendonly=True)
    new = RedisServer(tmp_path / "new", binary=find_redis_binary(6), appendonly=True)
    try:
        with Client.from_url(old.start().url()) as client:
            client.set("kept", "yes")
        carry_out(BACKUP, tmp_path, CACHE_URL=old.url())
        new.folder.mkdir()
        carry_out(FILE, tmp_path, REDIS_DIR=str(new.folder))
        with Client.from_url(new.start().url()) as client:
            assert client.get("kept") == b"yes"
    finally:
        old.stop()
        new.stop()


def refusal(stack: Stack, code: str) -> httpx.Response | None:
    """The answer, once the API listens and has its connection to Redis."""
    try:
        answer = httpx.get(f"{stack.url}/predict/F42")
    except httpx.ConnectError:
        return None
    return answer if answer.json().get("code") == code else None


def computes(stack: Stack) -> bool:
    answer = httpx.get(f"{stack.url}/predict/F42", params=FRESH, timeout=30)
    return answer.status_code == 200 and answer.json()["outcome"] == "computed"


def test_the_embedded_redis_takes_a_backup_too(lost: Lost, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    elsewhere(lost, folder)
    (folder / "forecache.toml").write_text(f"[api]\nport = {free_port()}\n{FLIGHTS_TOML}")
    redis = folder / ".forecache" / "redis"
    redis.mkdir(parents=True, mode=0o700)
    carry_out(FOLDER, folder, REDIS_DIR=str(redis))
    with (folder / "up.log").open("wb") as log:
        up = start_python(
            ["-m", "app.cli", "up", "--only", "redis"], cwd=folder, env=child_environment(),
            stdout=log.fileno(), stderr=log.fileno(), new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: "all ready" in (folder / "up.log").read_text(), "Redis", 30)
        assert [run["run_id"] for run in run_cli_json(folder, "batch", "list")] == lost.runs
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(30)


def test_data_of_a_newer_release_is_refused_by_name(lost: Lost, tmp_path: Path) -> None:
    with restored(lost, tmp_path / "new", SNAPSHOT, appendonly=False) as stack:
        keys = stack.deployment.keys.table(TableKind.PREDICTIONS, MODEL)
        with Client.from_url(stack.settings.cache_url) as client:
            key = keys.generation(int(client.hget(keys.pointer, "current") or 0))
            manifest = json.loads(client.hget(key, "manifest") or b"")
            client.hset(key, "manifest", json.dumps({**manifest, "format": 99}))
        stack.start("api")
        refused = wait_for(lambda: refusal(stack, "unknown-format"), "the refusal", 60)
        assert refused.status_code == 503
        assert "written in format 99" in refused.json()["detail"]
