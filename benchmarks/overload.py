"""Ten times the connections that saturate the misses, for a minute: memory, hits meanwhile, and what comes after."""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import psutil
import redis
from rig.dataset import entity_id, make_dataset
from rig.pressure import Pressing, Pressure, press
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

TIMES = 10
#: connections tried; the fewest that are about as fast as any saturate
SATURATING = (8, 32, 128)
ABOUT = 0.95
HIT_CONNECTIONS = 8
SATURATION_S = 5
BARE_S = 15
#: memory is compared with what it was so long after the beginning
SETTLED_S = 10
RECOVERY_S = 5
IDS_AT_ONCE = 1000
MUST_COMPUTE = "?max_staleness_hours=0"


@dataclass
class Memory:
    """Samples the resident memory of processes with their children and that of Redis, in MiB, once a second."""

    pids: dict[str, int]
    client: redis.Redis
    samples: list[dict[str, float]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def growth(self, name: str) -> float:
        """Return the last sample divided by that at 10 s."""
        return self.samples[-1][name] / self.samples[min(SETTLED_S, len(self.samples) - 1)][name]

    def _sample(self) -> None:
        processes = {name: psutil.Process(pid) for name, pid in self.pids.items()}
        info: Any = self.client.info
        while True:
            used = {
                name: sum(one.memory_info().rss for one in _with_children(process)) / 2**20
                for name, process in processes.items()
            }
            self.samples.append({**used, "redis": info("memory")["used_memory"] / 2**20})
            if self._over.wait(1):
                return


@dataclass(frozen=True)
class Second:
    """A second at saturation. `cpu_us`: the API's and the worker's processor time for each prediction.

    Other work on the machine moves the rate and not the processor time.
    """

    rps: float
    cpu_us: float


@dataclass(frozen=True)
class Seen:
    """Everything that was measured."""

    saturated: Pressure
    connections: int
    bare: Pressure
    bare_hits: Pressure
    misses: Pressure
    hits: Pressure
    memory: Memory
    before: list[Second]
    after: list[Second]


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            seen = measure(stack, options)
    rows = [
        (f"misses, saturated by {seen.connections} connections", *_cells(seen.saturated)),
        (f"misses, {seen.connections * TIMES} connections, {options.budget_ms} ms", *_cells(seen.misses)),
        (f"hits meanwhile, {HIT_CONNECTIONS} connections", *_cells(seen.hits)),
        (f"bare endpoint, {seen.connections * TIMES} connections", *_cells(seen.bare)),
        (f"bare endpoint meanwhile, {HIT_CONNECTIONS} connections", *_cells(seen.bare_hits)),
    ]
    title = (
        f"Overload: {TIMES} times saturation for {options.seconds} s, {options.api_processes} API process(es), "
        f"one worker, micro-batches of up to {options.max_micro_batch}"
    )
    headings = ["", "as asked/s", "ladder/s", "503/s", "p50 ms", "p99 ms", "max ms", "late"]
    print_report(title, headings, rows, _figures(seen), as_json=options.json)
    for name in ("api", "worker", "redis"):
        samples = seen.memory.samples
        middle = samples[min(SETTLED_S, len(samples) - 1)][name]
        print(f"memory of {name}: {middle:.1f} MiB at {SETTLED_S} s, {samples[-1][name]:.1f} MiB at the end")
    for when, seconds in (("before", seen.before), ("after", seen.after)):
        told = ", ".join(f"{one.rps:.0f}/s at {one.cpu_us:.0f} us" for one in seconds)
        print(f"predictions at saturation and their processor time, each second {when}: {told}")


def measure(stack: Stack, options: argparse.Namespace) -> Seen:
    """Find saturation, overload the bare endpoint and then ours, and watch ours recover."""
    rows, pids = options.rows, prepare(stack, options)
    saturated, connections = saturate(stack, rows)
    bare_url = stack.start_baseline("bare_api")
    bare, bare_hits = _overload(bare_url, rows, connections, BARE_S, "", options.budget_ms)
    before = _seconds(stack.url, rows, connections, pids)
    with stack.client() as client, Memory(pids, client) as memory:
        query = f"{MUST_COMPUTE}&timeout_ms={options.budget_ms}"
        misses, hits = _overload(stack.url, rows, connections, options.seconds, query, options.budget_ms)
    after = _seconds(stack.url, rows, connections, pids)
    return Seen(saturated, connections, bare, bare_hits, misses, hits, memory, before, after)


def prepare(stack: Stack, options: argparse.Namespace) -> dict[str, int]:
    """Publish a generation, load the features, start one real-time worker and the API; return their pids.

    Every entity is computed once, since what is kept of it is the product and not what overload leaves behind.
    """
    rows, file = options.rows, stack.settings_file
    settings = file.read_text() + f"max_micro_batch = {options.max_micro_batch}\n"
    if options.api_processes > 1:
        settings = settings.replace("[api]\n", f"[api]\nprocesses = {options.api_processes}\n")
    file.write_text(settings)
    batch = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in batch:
        stack.stop(name)
    stack.forecache("features", "load", MODEL, str(stack.dataset.table))
    [worker] = stack.start_workers("realtime").values()
    api = stack.start_api()
    with httpx.Client(base_url=stack.url, timeout=120) as client:
        for start in range(0, rows, IDS_AT_ONCE):
            ids = [entity_id(row) for row in range(start, min(start + IDS_AT_ONCE, rows))]
            body = {"entity_ids": ids, "max_staleness_hours": 0, "timeout_ms": 60_000}
            client.post("/predict", json=body).raise_for_status()
    return {"worker": worker, "api": api}


def saturate(stack: Stack, rows: int) -> tuple[Pressure, int]:
    """Return what the misses come to at saturation, and how many connections that takes."""
    tried = {
        connections: press(stack.url, rows=rows, connections=connections, seconds=SATURATION_S, query=MUST_COMPUTE)
        for connections in SATURATING
    }
    best = max(one.rps for one in tried.values())
    return next((one, connections) for connections, one in tried.items() if one.rps >= ABOUT * best)


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _seconds(url: str, rows: int, connections: int, pids: dict[str, int]) -> list[Second]:
    """Return five seconds at saturation."""

    def cpu_s() -> float:
        times = [one.cpu_times() for pid in pids.values() for one in _with_children(psutil.Process(pid))]
        return float(sum(one.user + one.system for one in times))

    seconds = []
    for _ in range(RECOVERY_S):
        before_s = cpu_s()
        one = press(url, rows=rows, connections=connections, seconds=1, query=MUST_COMPUTE)
        seconds.append(Second(one.rps, (cpu_s() - before_s) / max(one.answered, 1) * 1e6))
    return seconds


def _overload(
    url: str, rows: int, connections: int, seconds: float, query: str, budget_ms: int
) -> tuple[Pressure, Pressure]:
    """Return what became of the load that is too much, and of the hits beside it.

    The connections of the hits are there before the load: a server that accepts one connection in each turn of its
    event loop, as the bare one does, has none for newcomers under it.
    """
    hits = Pressing(url, rows=rows, connections=HIT_CONNECTIONS, seconds=seconds, first_after_s=2)
    time.sleep(1)
    pressing = Pressing(
        url, rows=rows, connections=connections * TIMES, seconds=seconds, query=query, budget_ms=budget_ms
    )
    heard = hits.finish()
    return pressing.finish(), heard


def _cells(one: Pressure) -> tuple[Any, ...]:
    others = (one.fallback / one.duration_s, one.shed / one.duration_s)
    return (one.rps, *others, one.p50_ms, one.p99_ms, one.max_ms, f"{one.late:.1%}" + (" wrong" if one.wrong else ""))


def _figures(seen: Seen) -> dict[str, Any]:
    return {
        "saturated_rps": round(seen.saturated.rps),
        "connections": seen.connections,
        "ratio_hit_p99_bare": round(seen.hits.p99_ms / seen.bare_hits.p99_ms, 2),
        "hit_p99_ms": round(seen.hits.p99_ms, 1),
        "misses_late": seen.misses.late,
        "misses_wrong": seen.misses.wrong + seen.misses.lost,
        "ratio_memory_api": round(seen.memory.growth("api"), 3),
        "ratio_memory_worker": round(seen.memory.growth("worker"), 3),
        "ratio_memory_redis": round(seen.memory.growth("redis"), 3),
        "ratio_recovered": round(max(one.rps for one in seen.after) / median(one.rps for one in seen.before), 3),
        "ratio_cpu_after": round(seen.after[-1].cpu_us / median(one.cpu_us for one in seen.before), 3),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="ids, drawn uniformly")
    parser.add_argument("--seconds", type=int, default=60, help="of overload")
    parser.add_argument("--budget-ms", type=int, default=100, help="of each miss in the overload")
    parser.add_argument("--max-micro-batch", type=int, default=256, help="the setting of that name")
    parser.add_argument("--api-processes", type=int, default=1, help="the setting [api] processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
