"""Latency of hits and misses at a held rate before, while and after runs of a whole table, and the rate of these runs.

Misses are entities that no run scores; each is asked for once. The runs follow each other without a pause.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rig.dataset import Dataset, make_dataset
from rig.local_up import LocalUp
from rig.report import print_report
from rig.stack import MODEL, Stack, run_once, temporary_folder
from rig.traced import Mix, Trace, trace_load
from rig.wrk import write_answers

from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from tasks.broker import CeleryBroker

#: further ids, each asked for once
MISSES = 50_000
#: hits are drawn from so many ids
HITS = 100_000
CONNECTIONS = 32
WARM_UP_S = 3.0
#: runs without requests; the first one warms up
RUNS_ALONE = 4
PHASES = ("before", "while", "after")
HIT, MISS = ("hit_batch", "hit_realtime"), ("computed",)
TARGETS = {"ratio_hits_p99": 1.5, "ratio_misses_p99": 1.5, "ratio_run_rate": 0.7}


@dataclass(frozen=True)
class Measured:
    """The answers to all requests; for each phase from when to when (`time.monotonic`); rows a second of each run."""

    trace: Trace
    phases: dict[str, tuple[float, float]]
    alone: list[float]
    meanwhile: list[float]

    def latency_ms(self, phase: str, outcomes: tuple[str, ...]) -> Any:
        """Return the latencies of the requests that were due in a phase."""
        begin, end = self.phases[phase]
        due = self.trace.due_us / 1e6
        kept = np.isin(self.trace.outcome, outcomes) & (due >= begin) & (due < end)
        return (self.trace.received_us[kept] - self.trace.due_us[kept]) / 1000


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        whole = make_dataset(folder, options.rows + MISSES)
        scored, missed = Dataset(folder, options.rows), folder / "missed.parquet"
        rows = pq.read_table(whole.table)
        pq.write_table(rows.slice(0, options.rows), scored.table, row_group_size=250_000)
        pq.write_table(rows.slice(options.rows), missed)
        write_answers(folder / "answers.txt", whole.answers())
        with _started(folder, scored, missed, options) as (port, deployment):
            measured = _measure(f"http://127.0.0.1:{port}", folder / "answers.txt", deployment, options)
    _report(measured, options)


@contextlib.contextmanager
def _started(
    folder: Path, scored: Dataset, missed: Path, options: argparse.Namespace
) -> Iterator[tuple[int, Deployment]]:
    """Start a deployment that knows the features of the entities to be missed; yield its port and its parts."""
    processes = f"processes = {options.api_processes}\n"
    if options.start == "up":
        quiet = f'{processes}[workers]\ngpus = "none"\n'
        with LocalUp(folder, scored, budget_ms=10_000, more_toml=quiet) as up:
            up.forecache("features", "load", MODEL, str(missed))
            with Deployment(load_settings(folder / "forecache.toml"), WORKER, CeleryBroker) as deployment:
                yield up.api_port, deployment
        return
    with Stack(folder, scored) as stack:
        stack.api_lines = processes
        stack.use_cache_port(stack.start_redis("cache") if options.redis == "apart" else stack.redis_port)
        stack.start_workers("gpu", "maintenance", "realtime")
        stack.forecache("features", "load", MODEL, str(missed))
        stack.start_api()
        with Deployment(load_settings(stack.settings_file), WORKER, CeleryBroker) as deployment:
            yield stack.api_port, deployment


def _measure(url: str, answers: Path, deployment: Deployment, options: argparse.Namespace) -> Measured:
    alone = [run_once(deployment) for _ in range(RUNS_ALONE)][1:]
    mix = Mix(HITS, options.rows, options.rows + MISSES - 1, options.miss_share)
    mix = Mix(HITS, _load(url, answers, mix, WARM_UP_S, options).next_miss, mix.last_miss, mix.miss_share)
    with ThreadPoolExecutor(1) as thread:
        began = time.monotonic()
        # the runs take longer than asked for: the last one is waited for
        load = thread.submit(_load, url, answers, mix, 3 * options.seconds + _longest_s(alone, options), options)
        time.sleep(options.seconds)
        run_began, meanwhile = time.monotonic(), []
        while time.monotonic() < run_began + options.seconds:
            meanwhile.append(run_once(deployment))
        run_ended = time.monotonic()
        trace = load.result()
    ended = max(trace.due_us) / 1e6
    phases = {"before": (began, run_began), "while": (run_began, run_ended), "after": (run_ended + 1, ended)}
    return Measured(trace, phases, alone, meanwhile)


def _load(url: str, answers: Path, mix: Mix, seconds: float, options: argparse.Namespace) -> Trace:
    return trace_load(url, answers, mix, connections=CONNECTIONS, seconds=seconds, rate_rps=options.rate)


def _longest_s(alone: list[float], options: argparse.Namespace) -> float:
    return 2 * options.rows / min(alone)


def _report(measured: Measured, options: argparse.Namespace) -> None:
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {"start": options.start, "api_processes": options.api_processes, "redis": options.redis}
    for kind, outcomes in (("hits", HIT), ("misses", MISS)):
        latencies = {phase: measured.latency_ms(phase, outcomes) for phase in PHASES}
        for percentile in (50, 95, 99):
            of_phase = {phase: float(np.percentile(values, percentile)) for phase, values in latencies.items()}
            ratio = of_phase["while"] / of_phase["before"]
            rows.append((f"{kind}, p{percentile} ms", *of_phase.values(), ratio))
            name = f"{kind}_p{percentile}"
            figures |= {f"{name}_ms_{phase}": round(value, 2) for phase, value in of_phase.items()}
            figures[f"ratio_{name}"] = round(ratio, 2)
    alone, meanwhile = median(measured.alone), median(measured.meanwhile)
    rows.append(("run, rows/s: alone, while", alone, meanwhile, None, meanwhile / alone))
    figures |= {
        "run_rows_per_s_alone": round(alone), "run_rows_per_s_while": round(meanwhile),
        "ratio_run_rate": round(meanwhile / alone, 2), "runs": len(measured.meanwhile),
        "client_core": round(measured.trace.client_core, 2), "outcomes": measured.trace.shares(),
    }  # fmt: skip
    figures["target_met"] = figures["ratio_run_rate"] >= TARGETS["ratio_run_rate"] and all(
        figures[name] <= TARGETS[name] for name in ("ratio_hits_p99", "ratio_misses_p99")
    )
    title = (
        f"{len(measured.meanwhile)} runs of {options.rows:,} rows at {options.rate:g} requests/s, "
        f"{options.miss_share:.0%} misses; started as {options.start}, {options.api_processes} API process(es), "
        f"Redis {options.redis}"
    )
    print_report(title, ["", *PHASES, "while / before"], rows, figures, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--start", choices=("workers", "up"), default="workers",
        help="each process by its own command, as on several machines, or all by `forecache up`",
    )  # fmt: skip
    parser.add_argument("--api-processes", type=int, default=1)
    parser.add_argument("--redis", choices=("shared", "apart"), default="shared", help="broker and cache")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--miss-share", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=30, help="of each phase")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    if options.start == "up" and options.redis == "apart":
        parser.error("`forecache up` starts one Redis: --redis apart needs --start workers")
    return options


if __name__ == "__main__":
    main()
