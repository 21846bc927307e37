"""A whole deployment for tests: a real Redis and real processes, each by its own command, all ended at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil

from inference.batch import RunState
from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings
from tasks.broker import CeleryBroker
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for
from tests.support.warm_start import WarmProcess, run_python, start_python

ROOT = Path(__file__).resolve().parents[2]

WORKERS = ("gpu", "realtime", "maintenance")


def child_environment() -> dict[str, str]:
    """The environment of every process that a test starts: this checkout's code, quiet TensorFlow, no drain."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORECACHE_")}
    ours = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    return kept | ours | {"FORECACHE_API__DRAIN": "0"}


class Stack:
    """Processes of one deployment in one folder, over a Redis of their own; `broker_url` is that Redis unless given.

    `url`, `cache_url`: how they reach that Redis, when not by its own URLs. `with_tensorflow`: its models need it.
    """

    #: the deployments that run now; the report of a failed test shows what they logged
    running: ClassVar[list[Stack]] = []

    def __init__(
        self,
        folder: Path,
        models_toml: str,
        *,
        broker_url: str | None = None,
        url: str | None = None,
        cache_url: str | None = None,
        with_tensorflow: bool = False,
    ) -> None:
        self.folder = folder
        self.with_tensorflow = with_tensorflow
        self.redis = RedisServer(folder / "redis", appendonly=True)
        self.api_port, self.dashboard_port = free_port(), free_port()
        self.processes: dict[str, WarmProcess | subprocess.Popen[bytes]] = {}
        self._deployment: Deployment | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "forecache.toml").write_text(
            f'[redis]\nurl = "{url or self.redis.url(0)}"\ncache_url = "{cache_url or self.redis.url(1)}"\n'
            + (f'[celery]\nbroker_url = "{broker_url}"\n' if broker_url else "")
            + f"[api]\nport = {self.api_port}\n"
            + f'[dashboard]\nport = {self.dashboard_port}\npassword = "sesame"\nurl_prefix = "flower"\n{models_toml}'
        )

    def __enter__(self) -> Stack:
        self.redis.start()
        self.running.append(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.running.remove(self)
        if error is not None:
            error.add_note(self.evidence())
        try:
            for name in list(self.processes):
                self.stop(name, signal.SIGTERM)
        finally:
            self._close_deployment()
            self.redis.stop()

    @property
    def settings(self) -> Settings:
        return load_settings(self.folder / "forecache.toml")

    @property
    def deployment(self) -> Deployment:
        """What the file says now, opened once."""
        settings = self.settings
        if self._deployment is None or self._deployment.settings != settings:
            self._close_deployment()
            self._deployment = Deployment(settings, WORKER, CeleryBroker)
        return self._deployment

    def _close_deployment(self) -> None:
        if self._deployment is not None:
            self._deployment.close()
            self._deployment = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def dashboard_url(self) -> str:
        """Where Flower is, under a prefix and with what its basic auth asks for."""
        return f"http://forecache:sesame@127.0.0.1:{self.dashboard_port}/flower"

    def start(self, *names: str, script: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Start `gpu`, `realtime`, `maintenance`, `beat`, `listen`, `api` or `dashboard`; a suffix (`gpu-2`): one more.

        `realtime-QUEUE` serves that queue only, and `realtime` none of the others then. `script`: run in the place of
        `workers`, or for a listener of `app.cli`, with the same arguments. `environment`: further variables.
        """
        own = child_environment() | dict(environment or {})
        for name in names:
            command = self._command(name.split("-")[0], name, script)
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = start_python(
                    command, cwd=self.folder, env=own, stdout=log.fileno(), stderr=log.fileno(), new_session=True,
                    with_tensorflow=self.with_tensorflow and name.startswith(("gpu", "realtime")),
                )  # fmt: skip

    def _command(self, kind: str, name: str, script: Path | None) -> list[str]:
        if kind in WORKERS:
            # `realtime-QUEUE` serves a model's own queue
            own = name.partition("-")[2] or name
            queues = self.settings.realtime_queues
            of_queue = ["-Q", own] if kind == "realtime" and len(queues) > 1 and own in queues else []
            return [*([str(script)] if script else ["-m", "workers"]), kind, "-n", f"{name}@%h", *of_queue]
        if kind == "listen":
            return [*([str(script)] if script else ["-m", "app.cli"]), kind, "--name", name]
        return ["-m", "beat_schedule"] if kind == "beat" else ["-m", "app.cli", kind]

    def stop(self, name: str, how: signal.Signals) -> None:
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.stop(name, signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def own_log(self, name: str) -> str:
        """Return a worker's log without what Celery says of a task that ended just when the broker was away."""
        return re.sub(r"Couldn't ack .*?(?=\n\d\d:\d\d:\d\d |\Z)", "", self.log(name), flags=re.DOTALL)

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a `forecache` command in the folder."""
        return run_cli(self.folder, *arguments, **options)

    def wait_ready(self, timeout_s: float = 90) -> None:
        """Wait until the API says that every model has been activated."""

        def ready() -> bool:
            try:
                return httpx.get(f"{self.url}/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(ready, "readiness", timeout_s)

    def evidence(self) -> str:
        """Each process: whether it lives, and the end of its log."""
        return "\n".join(
            f"--- {name} (exit code {process.poll()})\n{self.log(name)[-4000:]}"
            for name, process in self.processes.items()
        )

    def wait_run(self, run_id: str, timeout_s: float = 90) -> dict[str, Any]:
        """Wait until a run is over; return its view."""
        return wait_for(lambda: self.run_if_over(run_id), f"the end of run {run_id}", timeout_s)

    def run_if_over(self, run_id: str) -> dict[str, Any] | None:
        """The view of a run that is over; None while it goes on."""
        answer = httpx.get(f"{self.url}/runs/{run_id}")
        if answer.status_code == 503:  # on a busy machine Redis answers late now and then
            return None
        run: dict[str, Any] = answer.raise_for_status().json()
        return run if RunState(run["state"]).is_over else None


def run_cli(
    folder: Path, *arguments: str, timeout_s: float = 120, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `forecache` command in a folder and return what it printed. `environment`: further variables."""
    own = child_environment() | dict(environment or {})
    return run_python(["-m", "app.cli", *arguments], cwd=folder, env=own, timeout_s=timeout_s)


def run_worker(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a worker that ends by itself, and return what it printed."""
    own = child_environment() | dict(environment or {})
    return run_python(["-m", "workers", *arguments], cwd=folder, env=own, timeout_s=120)


def run_cli_json(folder: Path, *arguments: str) -> Any:
    """Run a command with --json and return its data."""
    done = run_cli(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def end_tree(process: WarmProcess | subprocess.Popen[Any]) -> None:
    """End a process and everything that it started."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    for child in children:
        if child.is_running():
            child.kill()
