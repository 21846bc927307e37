"""Rows per second of runs on Spark, against batch workers and against the usual Spark job."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from batch import check_stored
from rig.dataset import make_dataset
from rig.deployment import MODEL, ROOT, RUN_TIMEOUT_S, Deployment, rows_per_s, temporary_folder
from rig.report import print_report

#: what a machine's own name may lead to is no matter here
LOOPBACK = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost", "PYSPARK_PYTHON": sys.executable}
JOBS = ("map_in_arrow", "predict_batch_udf", "usual")


def main() -> None:
    """Measure, check what was stored, and print."""
    options = _options()
    os.environ.update(LOOPBACK)
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Deployment(folder, dataset) as deployment:
            figures = measure(deployment, options)
    rows = [
        ("a run on Spark", figures["ours_rows_per_s"]),
        ("the same run by two batch workers", figures["celery_rows_per_s"]),
        *((f"Spark alone, {name}, to Parquet", figures[f"{name}_rows_per_s"]) for name in JOBS),
    ]
    print_report(f"Spark: {options.rows:,} rows x 32 features", ["", "rows/s"], rows, figures, as_json=options.json)


def measure(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all."""
    workers = deployment.start_workers("gpu", "gpu", "maintenance")
    celery = rows_per_s(deployment.batch_run())
    ours = rows_per_s(spark_run(deployment))
    check_stored(deployment)
    for name in workers:
        deployment.stop(name)
    jobs = {}
    for name in JOBS:
        rows = min(options.rows, options.usual_rows) if name == "usual" else options.rows
        jobs[name] = job_rows_per_s(deployment, name, rows)
    return {
        "rows": options.rows,
        "ours_rows_per_s": round(ours),
        "celery_rows_per_s": round(celery),
        **{f"{name}_rows_per_s": round(rate) for name, rate in jobs.items()},
        "ratio_celery": round(ours / celery, 3),
        "ratio_brief": round(ours / jobs["usual"], 2),
        "ratio_map_in_arrow": round(ours / jobs["map_in_arrow"], 2),
    }


def spark_run(deployment: Deployment) -> dict[str, Any]:
    """Run the model over the whole table on Spark, wait until it is published, and return the run."""
    told = deployment.forecache("batch", "run", MODEL, "--engine", "spark", "--wait", "--json")
    run: dict[str, Any] = json.loads(told.splitlines()[-1])
    if (run["state"], run["engine"]) != ("published", "spark"):
        raise SystemExit(f"the run ended as {run['state']}: {run.get('error')}")
    return run


def job_rows_per_s(deployment: Deployment, name: str, rows: int) -> float:
    """Return a job's rows per second over the same table and model."""
    dataset = deployment.dataset
    output = str(deployment.folder / f"spark-{name}")
    finished = subprocess.run(
        [
            sys.executable, "-m", "baselines.spark_jobs", name, str(dataset.keras_model), str(dataset.table),
            str(rows), output, "local[*]",
        ],
        cwd=ROOT / "benchmarks", env=deployment.environment(), stdout=subprocess.PIPE, text=True, check=True,
        timeout=RUN_TIMEOUT_S,
    )  # fmt: skip
    told = json.loads(finished.stdout.splitlines()[-1])
    if told["rows"] != rows:
        raise SystemExit(f"{name} wrote {told['rows']} of {rows} rows")
    return float(told["rows"] / told["seconds"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--usual-rows", type=int, default=100_000, help="rows of the usual job")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
