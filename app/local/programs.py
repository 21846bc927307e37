"""Lists the programs that `forecache up` runs, from the settings and from `--only` and `--without`."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.local.embedded_redis import EmbeddedRedis, explain_death
from app.local.ports import LOOPBACK
from inference.errors import SettingsError
from inference.settings import REALTIME_QUEUE, ApiSettings, DashboardSettings, Settings, WorkerSettings
from inference.settings.processes import reachable_url

#: seconds that a worker may take to finish its chunk before it is killed; a killed chunk runs again
WORKER_GRACE_S = 20.0
GRACE_S = 10.0
#: stages of the end: API processes drain while real-time workers still answer, and Redis is the last
REALTIME_STAGE, LAST_STAGE = 1, 2
#: of programs that no request waits for: TensorFlow's start takes whole seconds of every core while requests go on
NICENESS = 10
#: the names of programs in `--only` and `--without`
KINDS = ("redis", "maintenance", "realtime", "batch", "beat", "listen", "api", "dashboard")
#: kinds that requests go through, beside Redis
_IN_A_HURRY = ("realtime", "api")


@dataclass(frozen=True)
class Program:
    """One process to keep alive.

    `env` is added to the supervisor's environment. `grace_s`: seconds between SIGTERM and SIGKILL.
    `is_ready`: the programs after this one wait until it returns True; None: they do not wait.
    `says_ready`: matches the line that the program prints when it does its work; None: it works as soon as it runs.
    `url`: its address, for people.
    `on_start` gets the pid of each new process.
    `explain` makes one sentence from the last lines of a process that ended before it was ready.
    `stop_stage`: the supervisor stops the programs of a stage when those of the stages before have ended.
    `hasty_signal`: what it gets in the place of SIGTERM when the supervisor itself was stopped by another signal.
    `niceness`: how far it gives way to the others when the processor is short (0 to 19).
    `fds`: file descriptors of the supervisor that it inherits.
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
    stop_stage: int = 0
    hasty_signal: signal.Signals = signal.SIGTERM
    niceness: int = 0
    fds: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """Its name without the number, as in `--only` and `--without`."""
        return self.name.partition("-")[0]


def all_programs(
    settings: Settings, redis: EmbeddedRedis | None, gpus: Sequence[str] | None, *, listener: int | None = None
) -> list[Program]:
    """Return every program of the deployment, in the order in which they start.

    `gpus`: the result of `visible_gpus`; each GPU gets the batch and real-time workers that the settings say.
    `listener`: file descriptor of the socket that API processes share; None: there are none.
    """
    return [
        *([redis_program(redis)] if redis else []),
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
        *_listeners(settings),
        *_apis(settings.api, listener),
        _module(
            "dashboard",
            "app.cli",
            "dashboard",
            says_ready="dashboard.ready",
            url=f"{_url(settings.dashboard)}/hit-rates",
        ),
    ]


def _listeners(settings: Settings) -> list[Program]:
    count = settings.workers.listen_processes if settings.streams else 0
    names = ["listen"] if count == 1 else [f"listen-{number}" for number in range(1, count + 1)]
    # each keeps its name, by which it finds the messages that it had when it died
    return [_module(name, "app.cli", "listen", "--name", name, says_ready=r"listen\.ready") for name in names]


def _apis(api: ApiSettings, listener: int | None) -> list[Program]:
    """Return one program more than there are API processes: one stands by, and takes over when another dies."""
    if listener is None:
        return []
    return [
        _module(
            f"api-{number}", "app.cli", "api", "--fd", str(listener), "--standby",
            says_ready=r"Application startup complete|api\.stands_by", url=_url(api), fds=(listener,),
            hasty_signal=signal.SIGINT, grace_s=api.longest_stop_s,
        )
        for number in range(1, api.processes + 2)
    ]  # fmt: skip


def chosen_kinds(only: Sequence[str] = (), without: Sequence[str] = ()) -> frozenset[str]:
    """Return the kinds to run. Each text may hold several names, with commas between them.

    Raises:
        SettingsError: a name is unknown (the message names the nearest), or no kind is left.
    """
    chosen = frozenset(_names("--only", only) or KINDS) - set(_names("--without", without))
    if not chosen:
        raise SettingsError("--only and --without leave nothing to run", field="only")
    return chosen


def _names(option: str, texts: Sequence[str]) -> list[str]:
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            near = difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise SettingsError(f"{option}: unknown process {name!r}{hint} known: {', '.join(KINDS)}", field=option)
    return names


def visible_gpus(workers: WorkerSettings, devices: Path = Path("/dev")) -> list[str] | None:
    """Return the GPUs to pin workers to, by their CUDA names; [] hides all GPUs, None: the machine has none.

    "auto" takes the GPUs in CUDA_VISIBLE_DEVICES, or without that variable every NVIDIA device of this machine.
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
    return [_worker(each, module, env, queue) for each, env in zip(names, environments, strict=True)]


def _worker(name: str, module: str, env: dict[str, str] | None = None, queue: str | None = None) -> Program:
    stage = REALTIME_STAGE if module == "realtime" else 0
    # Celery prints `says_ready` once it takes tasks
    return _module(
        name, "workers", module, *(["-Q", queue] if queue else []), "-n", f"{name}@%h",
        says_ready=rf"{name}@\S+ ready", env=env or {}, grace_s=WORKER_GRACE_S, stop_stage=stage,
    )  # fmt: skip


def _module(name: str, module: str, *arguments: str, says_ready: str, **options: Any) -> Program:
    # -P: the user's folder may contain another app.py, tasks.py or workers.py
    argv = [sys.executable, "-P", "-m", module, *arguments]
    niceness = 0 if name.partition("-")[0] in _IN_A_HURRY else NICENESS
    return Program(name, argv, says_ready=re.compile(says_ready), niceness=niceness, **options)


def _url(listener: ApiSettings | DashboardSettings) -> str:
    return reachable_url(listener.host, listener.port)


def redis_program(redis: EmbeddedRedis) -> Program:
    """Return the program of the embedded Redis; all others wait until it is ready."""
    return Program(
        "redis",
        redis.argv,
        is_ready=redis.is_ready,
        url=f"{LOOPBACK}:{redis.port}, data in {redis.state_dir.name}/redis",
        on_start=redis.announce,
        explain=lambda lines: explain_death(redis, lines),
        stop_stage=LAST_STAGE,
    )
