"""What `forecache up` runs: a pure list of programs, made from the settings."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.local.embedded_redis import EmbeddedRedis, explain_death
from app.local.ports import LOOPBACK
from inference.settings import REALTIME_QUEUE, ApiSettings, DashboardSettings, Settings, WorkerSettings
from inference.settings.processes import reachable_url

#: seconds that a worker may take to finish its chunk before it is killed; a killed chunk runs again
WORKER_GRACE_S = 20.0
GRACE_S = 10.0
#: of what nobody waits for: starting TensorFlow takes whole seconds of every core, and requests go on meanwhile
NICENESS = 10
#: kinds that requests go through, beside Redis
_IN_A_HURRY = ("realtime", "api")


@dataclass(frozen=True)
class Program:
    """One process to keep alive.

    `env` is added to the supervisor's environment. `grace_s`: seconds between SIGTERM and SIGKILL.
    `is_ready`: the programs after it wait until it is True; None means no waiting.
    `says_ready`: what one of its lines says when it does its work; None means as soon as it runs.
    `url`: where it is reached, for people.
    `on_start` is told the pid of each start.
    `explain`: turns the last lines of one that ends before it is ready into one sentence.
    `stops_last`: it is stopped when all others have ended.
    `niceness`: how far it gives way to the others when the processor is short (0 to 19).
    `fds`: of the supervisor's open files, those that it is given.
    """

    name: str
    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    grace_s: float = GRACE_S
    is_ready: Callable[[], bool] | None = None
    says_ready: re.Pattern[str] | None = None
    url: str = ""
    on_start: Callable[[int], None] | None = None
    explain: Callable[[list[str]], str] | None = None
    stops_last: bool = False
    niceness: int = 0
    fds: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """What it is called in `--only` and `--without`: its name without the number."""
        return self.name.partition("-")[0]


def all_programs(
    settings: Settings, redis: EmbeddedRedis | None, gpus: Sequence[str] | None, *, listener: int | None = None
) -> list[Program]:
    """Return every process of the deployment, in the order in which they start.

    `gpus`: what `visible_gpus` found; one batch worker and the real-time workers of the settings go to each.
    `listener`: the file descriptor of a socket that the API processes share; None where there is one, which opens its
    own.
    """
    return [
        *([_redis_program(redis)] if redis else []),
        _worker("maintenance", "maintenance"),
        *(
            program
            for queue in settings.realtime_queues
            for program in _workers(
                "realtime" if queue == REALTIME_QUEUE else f"realtime-{queue}",
                "realtime",
                settings.workers.realtime_processes,
                gpus,
                queue=queue,
            )
        ),
        *_workers("batch", "gpu", settings.workers.batch_processes, gpus),
        _module("beat", "beat_schedule", says_ready="beat: Starting"),
        *_apis(settings.api, listener),
        _module(
            "dashboard",
            "app.cli",
            "dashboard",
            says_ready="dashboard.ready",
            url=f"{_url(settings.dashboard)}/hit-rates",
        ),
    ]


def _apis(api: ApiSettings, listener: int | None) -> list[Program]:
    ready, url = "Application startup complete", _url(api)
    if listener is None:
        return [_module("api", "app.cli", "api", says_ready=ready, url=url)]
    return [
        _module(f"api-{number}", "app.cli", "api", "--fd", str(listener), says_ready=ready, url=url, fds=(listener,))
        for number in range(1, api.processes + 1)
    ]


def visible_gpus(workers: WorkerSettings, devices: Path = Path("/dev")) -> list[str] | None:
    """Return the GPUs to pin workers to, as CUDA names them; [] to hide them all, None when there are none.

    "auto" takes what CUDA_VISIBLE_DEVICES leaves, else every NVIDIA device of this machine.
    """
    if workers.gpus == "none":
        return []
    if workers.gpus != "auto":
        return [str(index) for index in workers.gpus]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    found = sorted(int(path.name.removeprefix("nvidia")) for path in devices.glob("nvidia[0-9]*"))
    return [str(index) for index in found] or None


def _workers(
    name: str, module: str, per_gpu: int, gpus: Sequence[str] | None, *, queue: str | None = None
) -> list[Program]:
    places: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus or ()]
    if not places:
        places = [{}] if gpus is None else [{"CUDA_VISIBLE_DEVICES": "-1"}]
    environments = [place for place in places for _ in range(per_gpu)]
    names = [f"{name}-{number}" for number in range(1, len(environments) + 1)] if len(environments) > 1 else [name]
    return [_worker(own, module, env, queue) for own, env in zip(names, environments, strict=True)]


def _worker(name: str, module: str, env: dict[str, str] | None = None, queue: str | None = None) -> Program:
    # the second is Celery's own line once it takes tasks
    return _module(
        name, "workers", module, *(["-Q", queue] if queue else []), "-n", f"{name}@%h",
        says_ready=rf"{name}@\S+ ready", env=env or {}, grace_s=WORKER_GRACE_S,
    )  # fmt: skip


def _module(name: str, module: str, *arguments: str, says_ready: str, **options: Any) -> Program:
    # -P: the user's folder may hold an app.py, tasks.py or workers.py of its own
    argv = [sys.executable, "-P", "-m", module, *arguments]
    niceness = 0 if name.partition("-")[0] in _IN_A_HURRY else NICENESS
    return Program(name, argv, says_ready=re.compile(says_ready), niceness=niceness, **options)


def _url(listener: ApiSettings | DashboardSettings) -> str:
    return reachable_url(listener.host, listener.port)


def _redis_program(redis: EmbeddedRedis) -> Program:
    return Program(
        "redis",
        redis.argv,
        is_ready=redis.is_ready,
        url=f"{LOOPBACK}:{redis.port}, data in {redis.state_dir.name}/redis",
        on_start=redis.announce,
        explain=lambda lines: explain_death(redis, lines),
        stops_last=True,
    )
