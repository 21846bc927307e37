"""Rows per second of a run on Spark, against the Celery engine, the brief's Spark job, and other ways into Python."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import pyarrow.dataset as ds
from batch import check_stored
from rig.dataset import make_dataset
from rig.report import print_report
from rig.stack import MODEL, ROOT, Stack, rows_per_s, temporary_folder

_WAYS = ("pandas_udf", "map_in_arrow", "predict_batch_udf")


def main() -> None:
    """Measure, check what was stored, and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            figures = measure(stack, options)
    rows = [
        ("Forecache, --engine spark", figures["ours_rows_per_s"]),
        ("Forecache, --engine celery", figures["celery_rows_per_s"]),
        ("the brief's Spark job (pandas_udf)", figures["brief_rows_per_s"]),
        ("mapInArrow, to Parquet only", figures["map_in_arrow_rows_per_s"]),
        ("predict_batch_udf, to Parquet only", figures["predict_batch_udf_rows_per_s"]),
    ]
    title = f"Spark, local[*]: {options.rows:,} rows x 32 features; with the start of Spark"
    print_report(title, ["", "rows/s"], rows, figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all; whatever ours stored is compared with the model's own answers."""
    workers = stack.start_workers(*["gpu"] * options.processes, "maintenance")
    celery = rows_per_s(stack.batch_run())
    check_stored(stack)
    ours = rows_per_s(spark_run(stack))
    check_stored(stack)
    for name in workers:
        stack.stop(name)
    usual = {way: job_rows_per_s(stack, way) for way in _WAYS}
    return {
        "rows": options.rows,
        "ours_rows_per_s": round(ours),
        "celery_rows_per_s": round(celery),
        "brief_rows_per_s": round(usual["pandas_udf"]),
        "map_in_arrow_rows_per_s": round(usual["map_in_arrow"]),
        "predict_batch_udf_rows_per_s": round(usual["predict_batch_udf"]),
        "ratio_celery": round(ours / celery, 3),
        "ratio_brief": round(ours / usual["pandas_udf"], 3),
        "ratio_map_in_arrow_predict_batch_udf": round(usual["map_in_arrow"] / usual["predict_batch_udf"], 3),
    }


def spark_run(stack: Stack) -> dict[str, Any]:
    """Run the model over the whole table on Spark and return the published run."""
    said = stack.forecache("batch", "run", MODEL, "--engine", "spark", "--wait", "--json")
    run: dict[str, Any] = json.loads(said.splitlines()[-1])
    return run


def job_rows_per_s(stack: Stack, way: str) -> float:
    """Return the rate of a plain Spark job, all of whose rows must have an answer."""
    dataset = stack.dataset
    output = stack.folder / f"spark-{way}"
    argv = [sys.executable, "-m", "baselines.spark_jobs", way]
    finished = subprocess.run(
        [*argv, str(dataset.keras_model), str(dataset.table), str(output)],
        cwd=ROOT / "benchmarks", env=stack.environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result = json.loads(finished.stdout.splitlines()[-1])
    if result["rows"] != dataset.rows or ds.dataset(output).count_rows() != dataset.rows:
        raise SystemExit(f"{way} answered {result['rows']:,} of {dataset.rows:,} rows")
    return float(result["rows"] / result["seconds"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2, help="batch workers of the Celery engine")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
