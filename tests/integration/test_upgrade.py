"""From 0.1.0 to this release: its data is served, its messages are taken, and its processes work beside ours.

`tests/data/record_release.py` recorded the data and the messages. The processes of 0.1.0 itself run only where the
history of the repository is complete.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from inference.redis.clients import Client
from tasks.celery_app import make_celery
from tests.support.flights import FLIGHTS_TOML, write_flights
from tests.support.redis_server import find_redis_binary
from tests.support.stack import ROOT, WORKERS, Stack, child_environment, run_cli_json
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

RECORDED = ROOT / "tests" / "data" / "release-0.1.0"
COMMIT = "cbbbf39"
#: to compare an answer by
TOLD = ("prediction", "outcome", "as_of", "model_version", "source")
FRESH = {"max_staleness_hours": "0"}


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """What the old deployment was like."""
    found: dict[str, Any] = json.loads((RECORDED / "state.json").read_text())
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> Iterator[Stack]:
    """The API of this release over the data of 0.1.0."""
    folder = tmp_path_factory.mktemp("upgraded") / "deployment"
    folder.mkdir()
    stack = Stack(folder, (RECORDED / "models.toml").read_text())
    shutil.copytree(RECORDED / "model", folder / "model")
    shutil.copy(RECORDED / "flights.parquet", folder)
    os.utime(folder / "flights.parquet", ns=(state["source_changed_at"],) * 2)
    stack.redis.binary, stack.redis.appendonly = find_redis_binary(7), False
    stack.redis.folder.mkdir()
    shutil.copy(RECORDED / "cache.rdb", stack.redis.folder / "dump.rdb")
    with stack:
        move(stack, state["folder"])
        stack.start("api")
        stack.wait_ready()
        yield stack


def move(stack: Stack, old_folder: str) -> None:
    """Have records of runs name files in the stack's folder, as if the deployment had always been there."""
    old, new = old_folder.encode(), str(stack.folder).encode()
    with Client.from_url(stack.settings.cache_url) as client:
        for key in client.scan_iter():
            if client.type(key) == b"hash":
                for name, value in client.hgetall(key).items():
                    if old in value:
                        client.hset(key, name, value.replace(old, new))


def in_time(message: str) -> str:
    """Return a recorded message as if it had been sent now."""
    envelope = json.loads(message)
    arguments, named, links = json.loads(base64.b64decode(envelope["body"]))
    if "deadline" in named:
        named["deadline"] = time.time() + 120
    envelope["body"] = base64.b64encode(json.dumps([arguments, named, links]).encode()).decode()
    envelope["headers"]["expires"] = None
    return json.dumps(envelope)


def send(stack: Stack, application: Celery, task: str) -> str:
    """Put a recorded message on its queue, and return the task's id."""
    message = json.loads((RECORDED / "messages.json").read_text())[f"forecache.{task}"]
    envelope = json.loads(message)
    prefix = application.conf.broker_transport_options["global_keyprefix"]
    with Client.from_url(stack.settings.broker_url) as client:
        client.lpush(prefix + envelope["properties"]["delivery_info"]["routing_key"], in_time(message))
    task_id: str = envelope["headers"]["id"]
    return task_id


def test_its_data_is_served(stack: Stack, state: dict[str, Any]) -> None:
    for entity, before in state["answers"].items():
        assert short(httpx.get(f"{stack.url}/predict/{entity}").json()) == short(before)
    kept = httpx.get(f"{stack.url}/predict/{state['computed']['entity_id']}").json()
    assert kept["prediction"] == state["computed"]["prediction"]
    assert kept["outcome"] == "hit_realtime"
    runs = [run["run_id"] for run in run_cli_json(stack.folder, "batch", "list")]
    assert runs == [state["waiting_run"], *state["runs"]]
    wait_for(lambda: answers_counted(stack) >= state["hits"] + len(state["answers"]) + 1, "old and new hits", 20)
    assert httpx.get(f"{stack.url}/predictions/{state['job']}").json()["state"] == "queued"


def answers_counted(stack: Stack) -> float:
    lines = httpx.get(f"{stack.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("forecache_predictions_total{"))


def short(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in TOLD}


def test_workers_of_this_release_take_its_messages(stack: Stack, state: dict[str, Any]) -> None:
    application = make_celery(stack.settings)
    asked = ("predict_entities", "predict_instances", "predict_explained", "predict_tensors")
    ids = {task: send(stack, application, task) for task in asked}
    for task in ("predict_job_part", "score_chunk", "check_parity", "prepare_run", "reconcile"):
        send(stack, application, task)
    stack.start(*WORKERS)
    results = {task: application.AsyncResult(task_id).get(timeout=120) for task, task_id in ids.items()}
    assert results["predict_entities"]["predictions"][0]["prediction"] == 51.0
    assert results["predict_instances"]["predictions"][0]["prediction"] == 3.0
    assert "explanation" in json.dumps(results["predict_explained"])
    assert "outputs" in results["predict_tensors"]
    job = wait_for(lambda: job_if_over(stack, state["job"]), "the job", 60)
    assert job["state"] == "done"
    assert stack.wait_run(state["waiting_run"])["state"] == "published"
    wait_for(lambda: "parity.checked" in stack.log("gpu"), "the check of parity", 60)
    started = application.AsyncResult(send(stack, application, "start_run")).get(timeout=60)
    assert stack.wait_run(started["run_id"])["state"] == "published"
    for worker in WORKERS:
        assert "Traceback" not in stack.log(worker)
        assert "message.refused" not in stack.log(worker)


def job_if_over(stack: Stack, job_id: str) -> dict[str, Any] | None:
    job: dict[str, Any] = httpx.get(f"{stack.url}/predictions/{job_id}").json()
    return job if job["state"] not in ("queued", "running") else None


@pytest.fixture
def old_checkout(tmp_path: Path) -> Path:
    """The code of 0.1.0, from the history of this repository."""
    if not (ROOT / ".git").exists() or git("cat-file", "-e", f"{COMMIT}^{{commit}}").returncode:
        pytest.skip(f"the history of this checkout does not hold {COMMIT}")
    folder = tmp_path / "old"
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", COMMIT], capture_output=True, check=True, timeout=60)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True, timeout=60)
    return folder


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False, timeout=60)


def test_its_processes_are_replaced_one_by_one_and_every_request_is_answered(
    old_checkout: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deployment"
    with Stack(folder, write_flights_of(folder)) as stack:
        for kind in ("maintenance", "gpu", "realtime", "api"):
            start_old(stack, kind, old_checkout)
        stack.wait_ready()
        started = httpx.post(f"{stack.url}/runs").raise_for_status().json()
        assert stack.wait_run(started["run_id"])["state"] == "published"
        # by its own command: old workers cannot read a table that this release has loaded
        load = [sys.executable, "-m", "app.cli", "features", "load", "delay", "flights.parquet"]
        subprocess.run(load, cwd=folder, env=old_environment(old_checkout), check=True, timeout=60)
        for kind in ("realtime", "gpu", "maintenance"):
            stack.start(f"{kind}-new")
            wait_for(lambda: " ready." in stack.log(f"{kind}-new"), f"the new {kind} worker", 90)  # noqa: B023
            answered(stack)  # by either
            stack.stop(kind, signal.SIGTERM)
            answered(stack)
        # the old API plans, the new workers score
        started = httpx.post(f"{stack.url}/runs").raise_for_status().json()
        stack.stop("api", signal.SIGTERM)
        stack.start("api")
        stack.wait_ready()
        answered(stack)
        assert stack.wait_run(started["run_id"])["state"] == "published"
        assert len(run_cli_json(folder, "batch", "list")) == 2


def write_flights_of(folder: Path) -> str:
    folder.mkdir()
    write_flights(folder)
    return FLIGHTS_TOML.replace("timeout_ms = 5000", "timeout_ms = 20000")


def old_environment(checkout: Path) -> dict[str, str]:
    environment = child_environment() | {"PYTHONPATH": str(checkout)}
    del environment["FORECACHE_API__DRAIN"]  # a setting that it does not know
    return environment


def start_old(stack: Stack, kind: str, checkout: Path) -> None:
    """Start a process of 0.1.0 by its own command."""
    worker = ["workers", kind, "-n", f"{kind}-old@%h"]
    with (stack.folder / f"{kind}.log").open("wb") as log:
        stack.processes[kind] = subprocess.Popen(
            [sys.executable, "-m", *(worker if kind in WORKERS else ["app.cli", kind])],
            cwd=stack.folder, env=old_environment(checkout), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def answered(stack: Stack) -> None:
    for number in range(10):
        fresh = httpx.get(f"{stack.url}/predict/F{number}", params=FRESH, timeout=30).json()
        logs = {name: stack.log(name)[-2000:] for name in stack.processes}
        assert (fresh.get("outcome"), fresh.get("prediction")) == ("computed", number + 1.0), (fresh, logs)
        stored = httpx.get(f"{stack.url}/predict/F{50 + number}", timeout=30).json()
        assert stored.get("outcome") == "hit_batch", stored
