"""What `forecache up` runs: a pure list of programs, made from the settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.local.embedded_redis import EmbeddedRedis, explain_death
from inference.settings import Settings, WorkerSettings

#: seconds that a worker may take to finish its chunk before it is killed; a killed chunk runs again
WORKER_GRACE_S = 20.0
GRACE_S = 10.0


@dataclass(frozen=True)
class Program:
    """One process to keep alive.

    `env` is added to the supervisor's environment. `grace_s`: seconds between SIGTERM and SIGKILL.
    `is_ready`: the programs after it wait until it is True; None means no waiting.
    `on_start` is told the pid of each start.
    `explain`: turns the last lines of one that ends before it is ready into one sentence.
    `stops_last`: it is stopped when all others have ended.
    """

    name: str
    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    grace_s: float = GRACE_S
    is_ready: Callable[[], bool] | None = None
    on_start: Callable[[int], None] | None = None
    explain: Callable[[list[str]], str] | None = None
    stops_last: bool = False


def all_programs(settings: Settings, redis: EmbeddedRedis | None, gpus: Sequence[str] | None) -> list[Program]:
    """Return every process of the deployment, in the order in which they start.

    `gpus`: what `visible_gpus` found; one batch worker and the real-time workers of the settings go to each.
    """
    return [
        *([_redis_program(redis)] if redis else []),
        _module("maintenance", "workers", "maintenance", "-n", "maintenance@%h", grace_s=WORKER_GRACE_S),
        *_workers("realtime", "realtime", settings.workers.realtime_processes, gpus),
        *_workers("batch", "gpu", settings.workers.batch_processes, gpus),
        _module("beat", "beat_schedule"),
        _module("api", "app.cli", "api"),
        _module("dashboard", "app.cli", "dashboard"),
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


def _workers(name: str, module: str, per_gpu: int, gpus: Sequence[str] | None) -> list[Program]:
    places: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus or ()]
    if not places:
        places = [{}] if gpus is None else [{"CUDA_VISIBLE_DEVICES": "-1"}]
    environments = [place for place in places for _ in range(per_gpu)]
    names = [f"{name}-{number}" for number in range(1, len(environments) + 1)] if len(environments) > 1 else [name]
    return [
        _module(own, "workers", module, "-n", f"{own}@%h", env=env, grace_s=WORKER_GRACE_S)
        for own, env in zip(names, environments, strict=True)
    ]


def _module(
    name: str, module: str, *arguments: str, env: dict[str, str] | None = None, grace_s: float = GRACE_S
) -> Program:
    # -P: the user's folder may hold an app.py, tasks.py or workers.py of its own
    return Program(name, [sys.executable, "-P", "-m", module, *arguments], env=env or {}, grace_s=grace_s)


def _redis_program(redis: EmbeddedRedis) -> Program:
    return Program(
        "redis",
        redis.argv,
        is_ready=redis.is_ready,
        on_start=redis.announce,
        explain=lambda lines: explain_death(redis, lines),
        stops_last=True,
    )
