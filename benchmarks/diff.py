"""Comparing: seconds and memory of `forecache batch diff` over predictions of two generations in Redis."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from rig.dataset import Dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.batch import DiffOptions, RunState, Trigger
from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.schema import DType, TensorSpec
from inference.settings import load_settings
from tasks.broker import CeleryBroker

ROWS = 10_000_000
#: ids of the newer generation that the older one lacks, so that their numbers of buckets differ
MORE = 1_000
_WINDOW = 250_000
_FIELDS = (TensorSpec("prediction", DType.FLOAT32),)


def main() -> None:
    """Write two generations, and compare them in a process of its own."""
    options = _options()
    if options.measure:
        measure(Path(options.measure[0]), options.measure[1])
        return
    with temporary_folder() as folder, Stack(folder / "store", Dataset(folder, 1)) as stack:
        with Deployment(load_settings(stack.settings_file), WORKER, CeleryBroker) as deployment:
            write(deployment, options.rows, published=True)
            run_id = write(deployment, options.rows + MORE, published=False)
        argv = [sys.executable, __file__, "--measure", str(stack.settings_file), run_id]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
    figures = json.loads(done.stdout.splitlines()[-1])
    headings = ["", "seconds", "processor, s", "peak, MiB"]
    row = (f"{figures['rows']:,} predictions", figures["seconds"], figures["cpu_seconds"], figures["peak_mib"])
    print_report("Comparing a run with what serves", headings, [row], figures, as_json=options.json)


def write(deployment: Deployment, rows: int, *, published: bool) -> str:
    """Leave a run behind whose generation has `rows` predictions, and return its id."""
    ledger, generations = deployment.ledger, deployment.predictions(MODEL).generations
    view = deployment.runs.request(MODEL, trigger=Trigger.CLI)
    manifest = generations.begin(
        _FIELDS, rows_expected=rows, model_version=1, contract_hash="h", keep_s=86_400, run_id=view.run_id
    )
    random = np.random.default_rng(int(published))
    for start in range(0, rows, _WINDOW):
        ids = pa.array([f"user_{number}" for number in range(start, min(start + _WINDOW, rows))])
        block = {"prediction": random.random(len(ids)).astype(np.float32)}
        generations.write(manifest, ids, block, np.full(len(ids), manifest.created_at))
    facts = {"generation": manifest.number, "chunks_total": 1, "chunks_done": 1, "rows_total": rows}
    end = RunState.PUBLISHED if published else RunState.HELD
    ledger.move(ledger.load(view.run_id), end, expected=[RunState.QUEUED], **facts)
    if published:
        generations.publish(manifest.number)
    return view.run_id


def measure(settings_file: Path, run_id: str) -> None:
    """Compare one run as the command does, and print the figures."""
    with Deployment(load_settings(settings_file), WORKER, CeleryBroker) as deployment:
        process = psutil.Process()
        started, used = time.monotonic(), process.cpu_times()
        diff = deployment.runs.diff(run_id, DiffOptions(threshold=0.5))
        seconds, after = time.monotonic() - started, process.cpu_times()
    figures = {
        "rows": diff.rows_both,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(after.user + after.system - used.user - used.system, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="predictions of each generation")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--measure", nargs=2, metavar=("SETTINGS", "RUN"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
