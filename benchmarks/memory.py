"""Memory: bytes of Redis a prediction, by shape; what a batch worker takes, and how fast it is, as its table grows."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from rig.dataset import entity_id, make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, rows_per_s, temporary_folder

from inference.schema import DType, TensorSpec

SHAPES = ((), (8,), (64,))
WINDOW = 250_000


def main() -> None:
    """Measure both and print."""
    options = _options()
    with temporary_folder() as folder:
        small = make_dataset(folder, options.worker_rows)
        with Stack(folder / "store", small) as stack:
            stored = {_name(shape): store_both(stack, shape, options.rows) for shape in SHAPES}
        many = options.worker_rows * options.growth
        runs = worker_runs(folder, [(options.worker_rows, False), (many, False), (many, True)], options.rounds)
    (ours, brief), ((small_mib, small_rate), (large_mib, large_rate), (whole_mib, _)) = stored[_name(())], runs
    figures = {
        "rows": options.rows,
        "ours_bytes_per_prediction": round(ours, 1),
        "brief_bytes_per_prediction": round(brief, 1),
        "ratio_brief": round(ours / brief, 3),
        "by_shape": {name: {"ours": round(pair[0], 1), "brief": round(pair[1], 1)} for name, pair in stored.items()},
        "worker_rows": [options.worker_rows, many],
        "worker_peak_mib": [round(small_mib), round(large_mib)],
        "worker_peak_mib_one_row_group": round(whole_mib),
        "ratio_worker_growth": round(large_mib / small_mib, 3),
        "ratio_one_row_group": round(whole_mib / large_mib, 3),
        "worker_rows_per_s": [round(small_rate), round(large_rate)],
        "ratio_worker_rate": round(large_rate / small_rate, 3),
    }
    rows: list[tuple[Any, ...]] = [(f"bytes a prediction, {name}", *pair) for name, pair in stored.items()]
    tables = (f"{options.worker_rows:,} rows", f"{many:,} rows", f"{many:,} rows in one row group")
    for name, (peak_mib, rate) in zip(tables, runs, strict=True):
        rows.append((f"worker's peak MiB, {name}", peak_mib, None))
        rows.append((f"worker's rows/s, {name}", rate, None))
    print_report(f"Memory, {options.rows:,} predictions", ["", "ours", "brief"], rows, figures, as_json=options.json)


def store_both(stack: Stack, shape: tuple[int, ...], rows: int) -> tuple[float, float]:
    """Return bytes of Redis a prediction of this shape: as a generation, and as one JSON value per id."""
    values = np.random.default_rng(3).standard_normal((min(rows, WINDOW), *shape)).astype(np.float32)
    with stack.client() as client:
        return (
            _growth(client, rows, lambda: _write_generation(stack, values, rows)),
            _growth(client, rows, lambda: _write_json(client, values, rows)),
        )


def _growth(client: redis.Redis, rows: int, write: Any) -> float:
    client.flushdb()
    before = int(client.info("memory")["used_memory"])
    write()
    return float((int(client.info("memory")["used_memory"]) - before) / rows)


def _write_generation(stack: Stack, values: Any, rows: int) -> None:
    table = stack.deployment.predictions(MODEL)
    fields = (TensorSpec("output", DType.FLOAT32, values.shape[1:]),)
    manifest = table.generations.begin(
        fields, rows_expected=rows, model_version=1, contract_hash="bench", keep_s=86_400
    )
    for start in range(0, rows, WINDOW):
        count = min(WINDOW, rows - start)
        ids = pa.array([entity_id(row) for row in range(start, start + count)])
        table.generations.write(manifest, ids, {"output": values[:count]}, np.full(count, time.time()))
    table.generations.publish(manifest.number)


def _write_json(client: redis.Redis, values: Any, rows: int) -> None:
    listed = values.tolist()
    for start in range(0, rows, 10_000):
        pipeline = client.pipeline(transaction=False)
        for row in range(start, min(start + 10_000, rows)):
            value = json.dumps({"prediction": listed[row % len(listed)], "timestamp": time.time()})
            pipeline.set(f"pred:{entity_id(row)}", value, ex=86_400)
        pipeline.execute()


def worker_runs(folder: Path, tables: Sequence[tuple[int, bool]], rounds: int) -> list[tuple[float, float]]:
    """Return of each table the most memory, in MiB, that its batch worker ever held, and the median of its rows/s.

    `tables`: how many rows each has, and whether they are one row group. Each has a worker of its own. They run in
    turn, so that a machine that grows slower does so for all; a first run of each, which loads the model, is not
    counted. A run lasts from its request to its publication.
    """
    with ExitStack() as opened:
        workers, stacks = [], []
        for rows, is_one_group in tables:
            own = folder / f"{rows}-{'whole' if is_one_group else 'grouped'}"
            own.mkdir()
            dataset = make_dataset(own, rows)
            if is_one_group:
                pq.write_table(pq.read_table(dataset.table), dataset.table, row_group_size=rows)
            stack = opened.enter_context(Stack(own / "run", dataset))
            workers.append(stack.start_workers("gpu", "maintenance"))
            stack.batch_run()
            stacks.append(stack)
        rates = [[rows_per_s(stack.batch_run()) for stack in stacks] for _ in range(rounds)]
        peaks = [_peak_mib(next(iter(pids.values()))) for pids in workers]
    return list(zip(peaks, map(median, zip(*rates, strict=True)), strict=True))


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def _name(shape: tuple[int, ...]) -> str:
    return f"float32[{shape[0]}]" if shape else "float32"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="predictions stored of each shape")
    parser.add_argument("--worker-rows", type=int, default=500_000, help="of the smaller run of two")
    parser.add_argument("--growth", type=int, default=4, help="how many times as many the larger has")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size whose median rate counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
