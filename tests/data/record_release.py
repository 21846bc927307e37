"""Records what a release leaves in Redis, and a message of each of its tasks, for tests of later releases.

Run it with that release's own code: `PYTHONPATH=OLD_CHECKOUT python record_release.py FOLDER`. It writes into FOLDER:
`cache.rdb` (the cache Redis), `messages.json` (task → a message as it lay in the broker), `state.json` (facts that a
test expects), `models.toml`, `model/` and `flights.parquet`. Nothing in `cache.rdb` expires.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import redis

from inference.settings import load_settings
from tasks.celery_app import make_celery
from tests.support.flights import write_flights
from tests.support.stack import Stack
from tests.support.waiting import wait_for

TOML = """
[models.delay]
path = "model"
features = "flights.parquet"
[models.delay.batch]
ttl = "30000d"
keep = "30000d"
[models.delay.realtime]
timeout_ms = 20000
ttl = "30000d"
keep = "30000d"
min_recompute_interval = "1s"
"""


class Recorder(threading.Thread):
    """Keeps the newest message of each task that anybody sends."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._client = redis.Redis(port=port, db=0, socket_timeout=None)
        self.messages: dict[str, str] = {}

    def run(self) -> None:
        with self._client.monitor() as monitor:
            for command in monitor.listen():
                name, _, rest = command["command"].partition(" ")
                if name.upper() == "LPUSH" and '{"' in rest:
                    raw = rest[rest.index("{") :]
                    if task := json.loads(raw).get("headers", {}).get("task"):
                        self.messages[task] = raw


def main(target: Path) -> None:
    """Run a deployment of this release, and record it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_flights(folder)
        with Stack(folder, TOML) as stack:
            recorder = Recorder(stack.redis.port)
            recorder.start()
            state = _live(stack, recorder)
            for process in list(stack.processes):
                stack.stop(process, signal.SIGTERM)
            _save(stack, target)
        shutil.copytree(folder / "model", target / "model", dirs_exist_ok=True)
        shutil.copy2(folder / "flights.parquet", target)
        state["source_changed_at"] = (folder / "flights.parquet").stat().st_mtime_ns
        state["folder"] = str(folder)
    (target / "models.toml").write_text(TOML)
    (target / "messages.json").write_text(json.dumps(recorder.messages, indent=1, sort_keys=True) + "\n")
    (target / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")


def _live(stack: Stack, recorder: Recorder) -> dict[str, Any]:
    """Make runs, hits and computed answers; leave a job, a chunk and the start of a run undone."""
    stack.start("gpu", "maintenance", "realtime", "api")
    stack.wait_ready()
    for _ in range(2):
        assert stack.cli("batch", "run", "delay", "--wait").returncode == 0
    assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
    with httpx.Client(base_url=stack.url, timeout=30) as http:
        state: dict[str, Any] = {"answers": {f"F{n}": http.get(f"/predict/F{n}").json() for n in range(10)}}
        fresh = {"max_staleness_hours": "0"}
        state["computed"] = http.get("/predict/F50", params=fresh).raise_for_status().json()
        http.get("/predict/F50", params={**fresh, "explain": "features"}).raise_for_status()
        http.post("/v1/models/delay:predict", json={"instances": [[1.0, 2.0]]}).raise_for_status()
        http.post("/predict", json={"model": "delay", "instances": [{"a": 1.0, "b": 2.0}]}).raise_for_status()
        state["hits"] = wait_for(lambda: (n := http.get("/hit-rate").json()["total"]) >= 11 and n, "hits", 20)
        stack.stop("realtime", signal.SIGTERM)
        stack.stop("gpu", signal.SIGTERM)
        job = http.post("/predictions", json={"model": "delay", "entity_ids": ["F1", "F2"]})
        state["job"] = job.raise_for_status().json()["task_id"]
        state["runs"] = [run["run_id"] for run in http.get("/runs").json()["runs"]]
        state["waiting_run"] = http.post("/runs").raise_for_status().json()["run_id"]
        wait_for(lambda: "forecache.score_chunk" in recorder.messages, "a chunk's message", 60)
    celery = make_celery(load_settings(stack.folder / "forecache.toml"))
    stack.stop("maintenance", signal.SIGTERM)
    celery.send_task("forecache.start_run", kwargs={"model": "delay"}, queue="maintenance")
    celery.send_task("forecache.check_parity", kwargs={"model": "delay"}, queue="batch")
    wait_for(lambda: "forecache.start_run" in recorder.messages, "the start of a run", 10)
    return state


def _save(stack: Stack, target: Path) -> None:
    """Save the cache without expiry, since tests of years later read it, and nothing else."""
    with redis.Redis(port=stack.redis.port, db=1) as cache:
        for key in cache.scan_iter():
            cache.persist(key)
    with redis.Redis(port=stack.redis.port, db=0) as broker:
        broker.flushdb()
    command = ["redis-cli", "-p", str(stack.redis.port), "--rdb", str(target / "cache.rdb")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
