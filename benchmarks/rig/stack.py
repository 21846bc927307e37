"""A whole Forecache in a temporary folder: its own Redis, settings and processes; all end with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import redis

from app.local.embedded_redis import find_binary
from inference.batch import RunState, Trigger
from inference.deployment import Deployment
from inference.errors import SettingsError
from inference.redis.clients import WORKER
from inference.settings import load_settings
from rig.dataset import Dataset
from tasks.celery_app import make_celery

ROOT = Path(__file__).resolve().parents[2]
MODEL = "bench"
START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 1800


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed at the end."""
    with TemporaryDirectory(prefix="forecache-bench-") as folder:
        yield Path(folder)


class Stack:
    """Settings and processes over one Redis: broker in database 0, predictions and features in database 1."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder = folder
        self.dataset = dataset
        self.redis_port = 0
        self.api_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._opened = contextlib.ExitStack()
        #: for processes started from now on
        self.variables: dict[str, str] = {}
        #: as in the settings; `api_lines`, `model_lines`: more keys of these sections
        self.gpus = "none"
        self.api_lines = self.model_lines = ""
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Stack:
        self.redis_port = self.start_redis("redis")
        self.use_cache_port(self.redis_port)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        for name in reversed(list(self._processes)):
            self.stop(name)

    @property
    def settings_file(self) -> Path:
        """The settings that all processes of this deployment read."""
        return self.folder / "forecache.toml"

    @property
    def url(self) -> str:
        """Where the API answers."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def deployment(self) -> Deployment:
        """What works on the present settings; it is closed at the end."""
        return self._opened.enter_context(Deployment(load_settings(self.settings_file), WORKER))

    def client(self, database: int = 1) -> redis.Redis:
        """Return a client of the deployment's Redis; answers are bytes."""
        return redis.Redis(port=self.redis_port, db=database)

    def use_cache_port(self, port: int) -> None:
        """Write the settings so that processes started from now on reach the cache by this port."""
        self.settings_file.write_text(
            f"""
[redis]
url = "redis://127.0.0.1:{self.redis_port}/0"
cache_url = "redis://127.0.0.1:{port}/1"
[api]
port = {self.api_port}
{self.api_lines}
[workers]
gpus = "{self.gpus}"
[models.{MODEL}]
{self.model_lines}
path = "{self.dataset.model}"
features = "{self.dataset.table}"
[models.{MODEL}.realtime]
timeout_ms = 10000
"""
        )

    def start(self, name: str, *command: str) -> int:
        """Start a process of this deployment and return its id; its output goes to `logs/`."""
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log)
        self._processes[name] = process
        return process.pid

    def start_redis(self, name: str) -> int:
        """Start a Redis, wait until it answers, and return its port."""
        port = free_port()
        self.start(
            name, redis_binary(), "--port", str(port), "--bind", "127.0.0.1",
            "--dir", str(self.folder), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
        )  # fmt: skip
        wait_until(lambda: _redis_answers(port), "Redis")
        return port

    def start_workers(self, *kinds: str) -> dict[str, int]:
        """Start one worker of each kind and wait until all take work.

        A kind may come twice. Returns name → process id.
        """
        started: dict[str, int] = {}
        for kind in kinds:
            name = f"{kind}-{len(self._processes)}"
            started[name] = self.start(name, sys.executable, "-P", "-m", "workers", kind, "-n", f"{name}@bench")
        celery_app = make_celery(load_settings(self.settings_file))
        # a worker answers once its models are loaded and warm
        wait_until(lambda: len(celery_app.control.ping(timeout=1.0)) >= len(kinds), "workers")
        return started

    def start_stock_worker(self) -> None:
        """Start a worker of the same tasks as Celery makes it, and wait until it takes them."""
        module = "baselines.stock_worker"
        self.start(
            "stock", sys.executable, "-P", "-m", "celery", "-q", "-A", f"{module}:celery_app", "worker",
            "-Q", "plain", "-n", "stock@bench",
        )  # fmt: skip
        celery_app = make_celery(load_settings(self.settings_file))
        wait_until(lambda: bool(celery_app.control.ping(["stock@bench"], timeout=1.0)), "the stock worker")

    def start_api(self) -> int:
        """Start the API, wait until it is ready, and return its process id."""
        pid = self.start("api", sys.executable, "-P", "-m", "app.cli", "api")
        wait_until(lambda: http_ok(f"{self.url}/health/ready"), "the API")
        return pid

    def start_listener(self) -> int:
        """Start a listener to all streams, and return its process id."""
        return self.start("listen", sys.executable, "-P", "-m", "app.cli", "listen")

    def start_baseline(self, module: str) -> str:
        """Serve `baselines/MODULE.py` under the server that the API uses too; return its URL."""
        port = free_port()
        self.start(
            module, sys.executable, "-P", "-m", "uvicorn", "--app-dir", str(ROOT / "benchmarks"),
            f"baselines.{module}:app", "--port", str(port), "--no-access-log", "--log-level", "warning",
            "--no-proxy-headers",
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: http_ok(f"{url}/ready"), module)
        return url

    def process_id(self, name: str) -> int:
        """Return the id of a process that was started under this name; a baseline's is that of its module."""
        return self._processes[name].pid

    def stop(self, name: str) -> None:
        """End a process and wait until it is gone."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def forecache(self, *arguments: str) -> str:
        """Run the `forecache` command in this deployment and return what it printed."""
        finished = subprocess.run(
            [sys.executable, "-P", "-m", "app.cli", *arguments],
            cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S,
        )  # fmt: skip
        if finished.returncode:
            raise SystemExit(f"forecache {' '.join(arguments)} failed; its logs end with:\n{self.last_logs()}")
        return finished.stdout

    def batch_run(self) -> dict[str, Any]:
        """Run the model over the whole table, wait until it is published, and return the run."""
        run: dict[str, Any] = json.loads(self.forecache("batch", "run", MODEL, "--wait", "--json").splitlines()[-1])
        if run["state"] != "published":
            raise SystemExit(f"the run ended as {run['state']}: {run.get('error')}")
        return run

    def environment(self) -> dict[str, str]:
        """Return the environment of this deployment's processes: ours, without anybody else's settings."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("FORECACHE_")}
        path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
        return {
            **own,
            "PYTHONPATH": path,
            "FORECACHE_CONFIG": str(self.settings_file),
            "BENCH_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "FORECACHE_API__DRAIN": "0",
            **self.variables,
        }

    def last_logs(self) -> str:
        """Return the last lines of every process's log."""
        logs = sorted((self.folder / "logs").iterdir())
        return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-8:]) for log in logs)


def _redis_answers(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.RedisError:
        return False


def redis_binary() -> str:
    """Return the server that `forecache up` would start.

    Raises:
        SystemExit: there is none.
    """
    try:
        return str(find_binary())
    except SettingsError as error:
        raise SystemExit(str(error)) from None


def http_ok(url: str) -> bool:
    """Return whether a GET answers 200."""
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until the condition holds; end the benchmark with one line when it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not become ready within {timeout_s:.0f} s")
        time.sleep(0.1)


def rows_per_s(run: dict[str, Any]) -> float:
    """Return the run's rate from the request to the published generation."""
    took = datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["created_at"])
    return float(run["rows_done"] / took.total_seconds())


def run_once(deployment: Deployment) -> float:
    """Run the model over its table and return the rows per second from the request to the published generation."""
    run_id = deployment.runs.request(MODEL, trigger=Trigger.CLI).run_id
    wait_until(lambda: deployment.ledger.load(run_id).state.is_over, "the run", RUN_TIMEOUT_S)
    run = deployment.ledger.load(run_id)
    if run.state is not RunState.PUBLISHED or run.finished_at is None:
        raise SystemExit(f"the run ended as {run.state}: {run.error}")
    return run.rows_done / (run.finished_at - run.created_at)
