"""Rows per second of a run on Spark, against the Celery engine, the brief's Spark job, and other ways into Python."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.dataset as ds
from batch import check_stored
from rig.dataset import make_dataset, write_table
from rig.report import print_report
from rig.stack import MODEL, ROOT, RUN_TIMEOUT_S, Stack, temporary_folder

from inference.batch import RunState, Trigger
from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from tasks.broker import CeleryBroker

_WAYS = ("pandas_udf", "map_in_arrow", "predict_batch_udf")
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Rates:
    """Rows per second of a run: from the request, and without the start (`rate_after_start`)."""

    whole: float
    after_start: float


def main() -> None:
    """Measure, check what was stored, and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            stack.model_lines = f"batch.rows_per_chunk = {options.chunk_rows}"
            stack.use_cache_port(stack.redis_port)
            figures = measure(stack, options)
    rows = [
        (f"Forecache, --engine {engine}", figures[f"{engine}_rows_per_s"], figures[f"{engine}_rows_per_s_with_start"])
        for engine in options.engines
    ]
    rows += [
        (title, figures.get(f"{way}_rows_per_s"), figures.get(f"{way}_rows_per_s_with_start"))
        for title, way in [
            ("the brief's Spark job (pandas_udf)", "brief"),
            ("mapInArrow, to Parquet only", "map_in_arrow"),
            ("predict_batch_udf, to Parquet only", "predict_batch_udf"),
        ]
    ]
    title = f"Spark, local[*]: {options.rows:,} rows x 32 features"
    print_report(title, ["", "rows/s", "with the start"], rows, figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all; whatever ours stored is compared with the model's own answers."""
    workers = stack.start_workers(*["gpu"] * options.processes, "maintenance")
    rates = {}
    with Deployment(load_settings(stack.settings_file), WORKER, CeleryBroker) as deployment:
        for engine in options.engines:
            rates[engine] = rates_of_run(deployment, engine, warm_chunks=options.processes)
            check_stored(stack)
            print(f"{engine}: {rates[engine]}", file=sys.stderr)
    for name in workers:
        stack.stop(name)
    figures: dict[str, Any] = {"rows": options.rows}
    for way in _WAYS if options.all_ways else _WAYS[:1]:
        rates["brief" if way == "pandas_udf" else way] = rates_of_job(stack, way, min(options.rows, options.brief_rows))
    for name, one in rates.items():
        figures |= {f"{name}_rows_per_s": round(one.after_start), f"{name}_rows_per_s_with_start": round(one.whole)}
    ours = rates["spark"]
    return figures | {
        "ratio_celery": round(ours.after_start / rates["celery"].after_start, 3),
        "ratio_brief": round(ours.after_start / rates["brief"].after_start, 2),
        "ratio_celery_with_start": round(ours.whole / rates["celery"].whole, 3),
        "ratio_brief_with_start": round(ours.whole / rates["brief"].whole, 2),
    }


def rates_of_run(deployment: Deployment, engine: str, *, warm_chunks: int) -> Rates:
    """Run the model over the whole table.

    The start is over when `warm_chunks` chunks are done: each process of the engine has loaded the model by then.
    """
    run_id = deployment.runs.request(MODEL, trigger=Trigger.CLI, engine=engine).run_id
    deployment.broker.hurry()
    end, warm_at, warm_rows = time.monotonic() + RUN_TIMEOUT_S, None, 0
    while True:
        run = deployment.ledger.load(run_id)
        if warm_at is None and run.chunks_done >= warm_chunks:
            warm_at, warm_rows = deployment.ledger.now(), run.rows_done
        if run.state.is_over:
            break
        if time.monotonic() > end:
            raise SystemExit(f"the run on {engine} did not end within {RUN_TIMEOUT_S} s")
        time.sleep(_LOOK_EVERY_S)
    if run.state is not RunState.PUBLISHED or run.finished_at is None or warm_at is None:
        raise SystemExit(f"the run on {engine} ended as {run.state}: {run.error}")
    return Rates(
        whole=run.rows_done / (run.finished_at - run.created_at),
        after_start=(run.rows_done - warm_rows) / max(run.finished_at - warm_at, _LOOK_EVERY_S),
    )


def rates_of_job(stack: Stack, way: str, rows: int) -> Rates:
    """Return the rates of a plain Spark job, all of whose rows must have an answer."""
    dataset = stack.dataset
    table, output = stack.folder / f"job-{rows}.parquet", stack.folder / f"spark-{way}"
    if not table.exists():
        write_table(table, rows)
    argv = [sys.executable, "-m", "baselines.spark_jobs", way]
    finished = subprocess.run(
        [*argv, str(dataset.keras_model), str(table), str(output)],
        cwd=ROOT / "benchmarks", env=stack.environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result = json.loads(finished.stdout.splitlines()[-1])
    if result["rows"] != rows or ds.dataset(output).count_rows() != rows:
        raise SystemExit(f"{way} answered {result['rows']:,} of {rows:,} rows")
    return Rates(whole=rows / result["seconds"], after_start=rows / result["seconds_after_start"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--brief-rows", type=int, default=1_000_000, help="at most so many for the plain Spark jobs")
    parser.add_argument("--chunk-rows", type=int, default=100_000, help="rows of a chunk, for every engine")
    parser.add_argument("--processes", type=int, default=2, help="batch workers of the Celery engine")
    parser.add_argument("--engines", nargs="+", default=["celery", "spark"], help="add ray for a run on Ray")
    parser.add_argument("--all-ways", action="store_true", help="the other two plain Spark jobs too")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
