"""An hour of everything at once: hits, misses, jobs, runs, new versions, random kills; then what is lost or grew."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
from rig.dataset import Dataset, entity_id, make_dataset
from rig.local_up import KINDS, LocalUp
from rig.open_loop import Callers
from rig.report import print_report
from rig.stack import MODEL, temporary_folder

from inference.deployment import Deployment
from inference.errors import ForecacheError
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings

#: of the requests, that must be computed
MISSES = 0.1
#: seconds of a request's patience, and how long a run or a job may take after the kills before it counts as stuck
PATIENCE_S, SETTLE_S = 5.0, 180.0
SAMPLE_EVERY_S = 5.0
#: a process is sampled at this age, when it has loaded everything
GROWN_UP_S = 30.0
#: what may grow between the first and the last quarter: this share, or this much (MiB, descriptors, keys, threads)
MOST_GROWTH = 1.15
SLACK = {"memory MiB": 30.0, "descriptors": 10.0, "threads": 4.0, "keys": 500.0, "Redis MiB": 20.0}
OVER = ("published", "failed", "cancelled", "compared", "done")


@dataclass
class Told:
    """What came of the load, for the table."""

    wrong: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    #: run or job → its last known state
    runs: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    #: requests for runs and jobs that were not accepted, by why
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    version: int = 1
    #: (what, of what) → when and how much
    samples: defaultdict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))


class Soak:
    """The load on one deployment."""

    def __init__(self, up: LocalUp, dataset: Dataset, options: argparse.Namespace) -> None:
        self._up = up
        self._dataset = dataset
        self._answers: npt.NDArray[np.float32] = dataset.answers()
        self._options = options
        self._chance = random.Random(options.seed)
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{up.api_port}", timeout=PATIENCE_S)
        self.told = Told()
        self.callers = Callers(up.api_port, self._path, patience_s=PATIENCE_S, look=self._look)

    async def run(self) -> None:
        """Keep everything going for the time, end the kills, and wait for what is under way."""
        options = self._options
        tasks = [
            asyncio.create_task(self._every(options.kill_every_s, self._kill)),
            asyncio.create_task(self._every(options.run_every_s, self._start_run)),
            asyncio.create_task(self._every(options.job_every_s, self._start_job)),
            asyncio.create_task(self._every(options.activate_every_s, self._activate)),
            asyncio.create_task(self._every(SAMPLE_EVERY_S, self._sample)),
        ]
        await self.callers.keep_rate(options.rate, options.minutes * 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._settle()
        await self._client.aclose()

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await act()

    def _path(self) -> str:
        query = "?max_staleness_hours=0" if self._chance.random() < MISSES else ""
        return f"/predict/{entity_id(self._chance.randrange(self._dataset.rows))}{query}"

    def _look(self, answer: dict[str, Any]) -> None:
        """Note an answer that is not the model's; all versions are equal, and a degraded one says so."""
        if "prediction" not in answer or answer.get("outcome") == "default":
            return
        row = int(str(answer["entity_id"]).removeprefix(entity_id(0)[:-1]))
        if not np.isclose(answer["prediction"], self._answers[row], rtol=1e-5, atol=1e-6):
            self.told.wrong.append(f"row {row}: {answer}")

    async def _kill(self) -> None:
        alive = [one for one in self._up.processes() if one[0] in self._options.kill]
        if not alive:
            return
        kind, process = self._chance.choice(alive)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            self.told.killed[kind] += 1

    async def _start_run(self) -> None:
        answer = await self._ask("POST", "/runs", {"delta": self._chance.random() < 0.2})
        if answer is not None:
            self.told.runs[answer["run_id"]] = answer["state"]

    async def _start_job(self) -> None:
        ids = [entity_id(self._chance.randrange(self._dataset.rows)) for _ in range(500)]
        answer = await self._ask("POST", "/predictions", {"entity_ids": ids})
        if answer is not None:
            self.told.jobs[answer["task_id"]] = "queued"

    async def _activate(self) -> None:
        """Put an equal version beside the others; the oldest goes, as in a folder that somebody tends."""
        model, version = self._dataset.model, self.told.version
        # a reader must not see half of it
        shutil.copytree(model / str(version), model.parent / "next")
        (model.parent / "next").rename(model / str(version + 1))
        if version > 3:
            shutil.rmtree(model / str(version - 3))
        self.told.version = version + 1
        # what it asks may just be dead: workers look by themselves too
        with contextlib.suppress(subprocess.CalledProcessError):
            await asyncio.to_thread(self._up.forecache, "models", "reload", MODEL)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            self.told.refused[f"{path.split('/')[1]}: {type(error).__name__}"] += 1
            return None
        if answer.is_error:
            self.told.refused[f"{path.split('/')[1]}: {answer.status_code} {answer.json().get('code')}"] += 1
            return None
        return dict(answer.json())

    async def _settle(self) -> None:
        """Wait until each run and job is over and the newest version answers, or for as long as that may take."""
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            for path, known in (("/runs", self.told.runs), ("/predictions", self.told.jobs)):
                for name in [name for name, state in known.items() if state not in OVER]:
                    answer = await self._ask("GET", f"{path}/{name}")
                    if answer is not None:
                        known[name] = answer["state"]
                        if answer.get("error"):
                            self.told.errors[f"{path}: {str(answer['error'])[:90]}"] += 1
            if not self.stuck():
                return
            await asyncio.sleep(2)

    def stuck(self) -> list[str]:
        """Return the runs and jobs that are not over."""
        return [
            name for known in (self.told.runs, self.told.jobs) for name, state in known.items() if state not in OVER
        ]

    async def _sample(self) -> None:
        await asyncio.to_thread(self._sample_now)

    def _sample_now(self) -> None:
        most: defaultdict[tuple[str, str], float] = defaultdict(float)  # one of a kind may only stand by
        for kind, process in self._up.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if time.time() - process.create_time() > GROWN_UP_S:
                    self._add(most, "memory MiB", kind, process.memory_info().rss / (1 << 20))
                    self._add(most, "descriptors", kind, process.num_fds())
                    self._add(most, "threads", kind, process.num_threads())
        # it may be dead now
        with contextlib.suppress(ForecacheError), Deployment(self._settings(), WORKER) as deployment:
            self._add(most, "keys", "Redis", deployment.cache.dbsize())
            self._add(most, "Redis MiB", "Redis", deployment.cache.info("memory")["used_memory"] / (1 << 20))
        for what, value in most.items():
            self.told.samples[what].append((time.monotonic(), value))

    def _add(self, most: dict[tuple[str, str], float], what: str, kind: str, value: float) -> None:
        most[what, kind] = max(most[what, kind], value)

    def _settings(self) -> Settings:
        return load_settings(self._up.folder / "forecache.toml")


def main() -> None:
    """Soak, and print the tables."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        toml = '[workers]\ngpus = "none"\n'
        # computed answers are forgotten as fast as others come, or their keys would grow until all rows have one
        short = 'ttl = "3m"\nkeep = "3m"\n'
        up = LocalUp(folder, dataset, budget_ms=options.budget_ms, realtime_toml=short, more_toml=toml)
        with up:
            up.forecache("batch", "run", MODEL, "--wait")
            up.forecache("features", "load", MODEL, str(dataset.table))
            soak = Soak(up, dataset, options)
            asyncio.run(soak.run())
    report(soak, options)


def report(soak: Soak, options: argparse.Namespace) -> None:
    """Print what came of the load, and what grew."""
    told, stuck = soak.told, soak.stuck()
    called = soak.callers.called
    failed = Counter(f"{one.status} {one.outcome}" for one in called if one.status not in (200, 404))
    growth = [(*what, *found) for what, samples in sorted(told.samples.items()) if (found := _growth(samples))]
    grown = [f"{what} of {kind}" for what, kind, first, last in growth if _has_grown(what, first, last)]
    figures = {
        "requests": len(called), "failed": failed.total(), "wrong": len(told.wrong), "stuck": len(stuck),
        "killed": dict(told.killed), "runs": dict(Counter(told.runs.values())),
        "jobs": dict(Counter(told.jobs.values())), "versions": told.version, "refused": dict(told.refused),
        "errors": dict(told.errors), "grown": grown, "target_met": not (told.wrong or stuck or grown),
    }  # fmt: skip
    rows = [(name, str(value)) for name, value in figures.items()] + [("failed requests", _words(failed))]
    title = f"Soak: {options.minutes:g} min at {options.rate:g} requests/s, a kill every {options.kill_every_s:g} s"
    print_report(title, ["", "what came of it"], rows, figures, as_json=False)
    print_report("Growth", ["", "of", "first quarter", "last quarter"], growth, figures, as_json=options.json)
    for line in [*told.wrong[:5], *stuck[:5]]:
        print(line)


def _growth(samples: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the medians of the first and the last quarter of the time; None if there are too few samples."""
    quarter = len(samples) // 4
    if not quarter:
        return None
    return median(value for _, value in samples[:quarter]), median(value for _, value in samples[-quarter:])


def _has_grown(what: str, first: float, last: float) -> bool:
    return last > first * MOST_GROWTH and last - first > SLACK[what]


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--kill-every-s", type=float, default=10, help="between two deaths")
    parser.add_argument("--kill", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of processes to kill")
    parser.add_argument("--run-every-s", type=float, default=60)
    parser.add_argument("--job-every-s", type=float, default=15)
    parser.add_argument("--activate-every-s", type=float, default=300, help="between two new versions")
    parser.add_argument("--budget-ms", type=int, default=500)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
