"""A run of 100 million rows on one machine: rate, memory, hits meanwhile, rollback and collection, beside 1 million's.

Both tables have the same features; row n of the large one repeats row n of the small one, over and over, with an id of
its own. The same processes score both: what their memory grows by is the large table's doing.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from batch import used_memory
from rig.dataset import FEATURES, Dataset, entity_id
from rig.report import print_report
from rig.stack import MODEL, ROOT, Stack, rows_per_s, temporary_folder

from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from inference.store import Table
from tasks.broker import CeleryBroker

#: entities whose predictions are checked
CHECKED = 20_000
GROUP = 250_000
#: different values of a feature: Parquet stores a byte for each, so that 100 million rows take some 4 GB
LEVELS = 256
#: requests a second while the large run goes on: enough to see them suffer, too few to slow it down
HITS_PER_S = 100
LOOK_EVERY_S = 0.5
#: parts of the large run, whose rates are compared
PARTS = 10


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        small, large = Dataset(folder, options.small), Dataset(folder, options.rows)
        write_small(small)
        answers = small.answers()
        write_large(small, large)
        with Stack(folder, small) as stack:
            figures = measure(stack, large, answers, options)
    rows = [(name, value) for name, value in figures.items() if not isinstance(value, dict | list)]
    title = (
        f"{options.rows:,} rows, {options.processes} scoring process(es); {options.small:,} before, in the same ones"
    )
    print_report(title, ["", ""], rows, figures, as_json=options.json)


def write_small(dataset: Dataset) -> None:
    """Write the small table, the model, and its answers."""
    numbers = np.random.default_rng(7)
    values = numbers.integers(0, LEVELS, (dataset.rows, FEATURES)).astype(np.float32) / np.float32(LEVELS / 4) - 2
    columns: dict[str, Any] = {"entity_id": _ids(0, dataset.rows)}
    columns |= {f"f{number:02d}": pa.array(np.ascontiguousarray(values[:, number])) for number in range(FEATURES)}
    pq.write_table(pa.table(columns), dataset.table, row_group_size=GROUP)
    script = ROOT / "benchmarks/rig/train.py"
    command = [sys.executable, str(script), str(dataset.folder), str(dataset.rows)]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)})


def write_large(small: Dataset, large: Dataset) -> None:
    """Write the small table again and again, with new ids."""
    source = pq.read_table(small.table)
    with pq.ParquetWriter(large.table, source.schema) as writer:
        for start in range(0, large.rows, GROUP):
            at = start % small.rows
            part = source.slice(at, min(GROUP, small.rows - at, large.rows - start))
            writer.write_table(part.set_column(0, "entity_id", _ids(start, part.num_rows)))


def _ids(start: int, count: int) -> pa.Array:
    numbers = pc.cast(pa.array(np.arange(start, start + count)), pa.string())
    return pc.binary_join_element_wise("user_", numbers, "")


def measure(stack: Stack, large: Dataset, answers: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the small table's run, and then of the large one's and of what follows it."""
    started = stack.start_workers(*["gpu"] * options.processes, "maintenance")
    api = stack.start_api()
    *workers, maintenance = started.values()
    stack.batch_run()  # loads the model
    with Hits(stack.url, len(answers)):  # workers leave room for requests in both
        small_rate = max(rows_per_s(stack.batch_run()) for _ in range(options.small_runs))
    small_mib = max(map(_peak_mib, workers))
    maintenance_mib = _peak_mib(maintenance)
    before = used_memory(stack)

    large.table.replace(stack.dataset.table)  # the settings name this file
    with Hits(stack.url, len(answers)) as hits, Watch(stack, large.rows) as watch:
        run = stack.batch_run()
    table = stack.deployment.predictions(MODEL)
    generation, wrong = run["generation"], _count_wrong(table, large.rows, answers)
    figures: dict[str, Any] = {
        "rows": large.rows,
        "ratio_rate": round(rows_per_s(run) / small_rate, 3),
        "rows_per_s": round(rows_per_s(run)),
        "small_rows_per_s": round(small_rate),
        "scoring_rows_per_s_by_part": watch.rates(),
        "ratio_worker_memory": round(max(map(_peak_mib, workers)) / small_mib, 3),
        "worker_peak_mib": round(max(map(_peak_mib, workers))),
        "small_worker_peak_mib": round(small_mib),
        "ratio_maintenance_memory": round(_peak_mib(maintenance) / maintenance_mib, 3),
        "maintenance_peak_mib": round(_peak_mib(maintenance)),
        "api_peak_mib": round(_peak_mib(api)),
        "bytes_per_prediction": round((watch.most_bytes - before) / large.rows, 1),
        "redis_peak_mib": round(watch.most_bytes / 2**20),
        "least_available_mib": round(watch.least_available / 2**20),
        "wrong": wrong,
        "run_s": round(_seconds(run), 1),
        "phases": run["phases"],
        **hits.figures("run"),
    }
    stack.stop(list(started)[-1])  # maintenance would collect too
    return figures | _roll_back_and_collect(stack, table, generation)


def _roll_back_and_collect(stack: Stack, table: Table, generation: int) -> dict[str, Any]:
    """Go back to the small table's predictions, and remove the large ones as a maintenance worker does, under hits."""
    with Hits(stack.url, stack.dataset.rows) as hits:
        began = time.perf_counter()
        serving = table.generations.rollback(generation).current
        rolled_back = time.perf_counter()
        table.generations.collect(generation, sweep_after_s=0)
        collected = time.perf_counter()
    manifest = None if serving is None else table.generations.manifest(serving)
    return {
        "rollback_ms": round((rolled_back - began) * 1000, 2),
        "collect_s": round(collected - rolled_back, 1),
        "rows_after_rollback": table.generations.count(manifest) if manifest else 0,
        **hits.figures("collection"),
    }


def _count_wrong(table: Table, rows: int, answers: Any) -> int:
    """Return how many of a sample of entities lack the model's own answer."""
    sample = np.random.default_rng(1).integers(0, rows, min(CHECKED, rows))
    entries = table.read([entity_id(row) for row in sample.tolist()])
    found = np.array([next(iter(entry.values.values())) if entry else np.nan for entry in entries])
    return int((~np.isclose(found, answers[sample % len(answers)], rtol=1e-5, atol=1e-6)).sum())


def _seconds(run: dict[str, Any]) -> float:
    return (datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["created_at"])).total_seconds()


def _peak_mib(pid: int) -> float:
    """Return the most memory that a process and its children held, in MiB."""
    process = psutil.Process(pid)
    return sum(map(_peak_of, (process, *process.children(recursive=True))))


def _peak_of(process: psutil.Process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


@dataclass
class Watch:
    """Looks at a run and at the memory while the block lasts. `seen`: (seconds, rows done) since the first row."""

    stack: Stack
    rows: int
    seen: list[tuple[float, int]] = field(default_factory=list)
    most_bytes: int = 0
    least_available: float = float("inf")

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        with Deployment(load_settings(self.stack.settings_file), WORKER, CeleryBroker) as deployment:
            while not self._over.wait(LOOK_EVERY_S):
                self.most_bytes = max(self.most_bytes, used_memory(self.stack))
                self.least_available = min(self.least_available, psutil.virtual_memory().available)
                [newest] = deployment.runs.list(MODEL, limit=1)
                if newest.rows_total == self.rows and newest.rows_done:
                    self.seen.append((time.monotonic(), newest.rows_done))

    def rates(self) -> list[int]:
        """Return the rows a second in each part of the run, by the rows that chunks had scored."""
        times, done = (np.array(column, float) for column in zip(*self.seen, strict=True))
        edges = np.linspace(done[0], done[-1], PARTS + 1)
        took = np.diff(np.interp(edges, done, times))
        return [round(rows / s) if s else 0 for rows, s in zip(np.diff(edges), took, strict=True)]


class Hits:
    """Asks for stored entities at a fixed rate while the block lasts."""

    def __init__(self, url: str, entities: int) -> None:
        self._host, self._entities = url.removeprefix("http://"), entities
        self._over = threading.Event()
        self._ms: list[float] = []
        self._failed = 0
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Hits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        chance, due = random.Random(1), time.perf_counter()
        with _connection(self._host) as connection:
            while not self._over.is_set():
                due += 1 / HITS_PER_S
                time.sleep(max(0.0, due - time.perf_counter()))
                # from when the request was due: those that wait for a slow one count
                self._failed += not _is_hit(connection, chance.randrange(self._entities))
                self._ms.append((time.perf_counter() - due) * 1000)

    def figures(self, name: str) -> dict[str, Any]:
        """Return p50, p99 and the longest of the latencies in milliseconds, and how many failed."""
        p50, p99, longest = np.percentile(self._ms, [50, 99, 100]).round(2).tolist()
        figures = {"p50_ms": p50, "p99_ms": p99, "longest_ms": longest, "hits": len(self._ms), "failed": self._failed}
        return {f"{name}_{key}": value for key, value in figures.items()}


@contextmanager
def _connection(host: str) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(host, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def _is_hit(connection: HTTPConnection, row: int) -> bool:
    try:
        connection.request("GET", f"/predict/{entity_id(row)}")
        response = connection.getresponse()
        return response.status == 200 and b'"cache_hit":true' in response.read()
    except (OSError, HTTPException):
        connection.close()
        return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000, help="of the large table")
    parser.add_argument("--small", type=int, default=1_000_000, help="rows of the small one")
    parser.add_argument(
        "--small-runs", type=int, default=3, help="runs of the small table, of which the fastest counts"
    )
    parser.add_argument("--processes", type=int, default=2, help="scoring processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
