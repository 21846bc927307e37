"""Rows per second from Parquet to published predictions, against the usual loop and the Redis floor."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

import numpy as np
from rig.dataset import entity_id, make_dataset
from rig.peers import peer_python
from rig.recording import Recorder, replay
from rig.report import print_report
from rig.stack import MODEL, ROOT, Stack, rows_per_s, temporary_folder

CHECKED_ROWS = 20_000
REPLAYS = 3


def main() -> None:
    """Measure, check what was stored, and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            figures = measure(stack, options)
    rows = [
        ("Forecache", figures["ours_rows_per_s"], figures["bytes_per_prediction"]),
        ("the brief's loop", figures["brief_rows_per_s"], figures["brief_bytes_per_prediction"]),
        ("Redis floor: the same bytes replayed", figures["redis_floor_rows_per_s"], None),
    ]
    if options.ray:
        rows.insert(1, ("Ray Data, one actor", figures["ray_rows_per_s"], None))
    title = f"Batch: {options.rows:,} rows x 32 features, {options.processes} scoring process(es)"
    print_report(title, ["", "rows/s", "bytes/prediction"], rows, figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all three."""
    workers = stack.start_workers(*["gpu"] * options.processes, "maintenance")
    empty = used_memory(stack)
    rates = [rows_per_s(stack.batch_run())]
    used = used_memory(stack) - empty
    check_stored(stack)
    rates += [rows_per_s(stack.batch_run()) for _ in range(options.runs - 1)]
    for name in workers:
        stack.stop(name)
    floor_s = redis_floor_s(stack, options.processes)
    peers = min(options.rows, options.brief_rows)
    brief_rows_per_s, brief_bytes = usual(stack, "brief_batch", peers)
    ours, floor = median(rates), options.rows / floor_s
    ray: dict[str, float] = {}
    if options.ray:
        python = str(peer_python("ray_data"))
        rate, _ = usual(stack, "ray_batch", min(options.rows, options.ray_rows), python=python)
        ray = {"ray_rows_per_s": round(rate), "ratio_ray": round(ours / rate, 2)}
    return {
        "rows": options.rows,
        "ours_rows_per_s": round(ours),
        "ours_rows_per_s_by_run": [round(rate) for rate in rates],
        "brief_rows_per_s": round(brief_rows_per_s),
        "redis_floor_rows_per_s": round(floor),
        "ratio_brief": round(ours / brief_rows_per_s, 2),
        "ratio_redis_floor": round(ours / floor, 3),
        **ray,
        "bytes_per_prediction": round(used / options.rows, 1),
        "brief_bytes_per_prediction": round(brief_bytes, 1),
    }


def used_memory(stack: Stack) -> int:
    """Return the bytes that Redis has in use."""
    with stack.client() as client:
        return int(client.info("memory")["used_memory"])


def check_stored(stack: Stack) -> None:
    """End the benchmark unless every row is stored, and a uniform sample holds the model's own answers."""
    dataset, table = stack.dataset, stack.deployment.predictions(MODEL)
    current = table.pointer().current
    manifest = table.generations.manifest(current) if current is not None else None
    stored = table.generations.count(manifest) if manifest else 0
    if stored != dataset.rows:
        raise SystemExit(f"{stored:,} of {dataset.rows:,} predictions are stored")
    sample = np.random.default_rng(1).choice(dataset.rows, min(CHECKED_ROWS, dataset.rows), replace=False)
    entries = table.read([entity_id(row) for row in sample.tolist()])
    found = np.array([next(iter(entry.values.values())) if entry else np.nan for entry in entries])
    wrong = int((~np.isclose(found, dataset.answers()[sample], rtol=1e-5, atol=1e-6)).sum())
    if wrong:
        raise SystemExit(f"{wrong:,} of {len(sample):,} sampled predictions are missing or not the model's")


def redis_floor_s(stack: Stack, processes: int) -> float:
    """Record what one run writes, and return the best of three replays in seconds."""
    with Recorder(stack.folder / "recording", stack.redis_port) as recorder:
        stack.use_cache_port(recorder.port)
        workers = stack.start_workers(*["gpu"] * processes, "maintenance")
        stack.batch_run()
        for name in workers:
            stack.stop(name)
        streams = recorder.streams()
    stack.use_cache_port(stack.redis_port)
    return min(_replay_into_empty(stack, streams) for _ in range(REPLAYS))


def _replay_into_empty(stack: Stack, streams: Any) -> float:
    with stack.client() as client:
        client.flushdb()
    return replay(streams, stack.redis_port)


def usual(stack: Stack, name: str, rows: int, *, python: str = sys.executable) -> tuple[float, float]:
    """Return a baseline's rows per second and bytes a prediction, over the same table and model."""
    with stack.client() as client:
        client.flushdb()
    empty = used_memory(stack)
    dataset = stack.dataset
    finished = subprocess.run(
        [
            python, "-m", f"baselines.{name}", str(dataset.keras_model), str(dataset.table),
            str(rows), f"redis://127.0.0.1:{stack.redis_port}/1",
        ],
        cwd=ROOT / "benchmarks", env=stack.environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result = json.loads(finished.stdout.splitlines()[-1])
    return result["rows"] / result["seconds"], (used_memory(stack) - empty) / result["rows"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3, help="runs of ours; the median counts")
    parser.add_argument("--processes", type=int, default=2, help="scoring processes of ours")
    parser.add_argument("--brief-rows", type=int, default=100_000, help="rows of the usual loop")
    parser.add_argument("--ray", action="store_true", help="measure Ray Data too; its first time installs it")
    parser.add_argument("--ray-rows", type=int, default=300_000, help="rows of Ray Data")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
