"""The driver of a run on Spark: `python -m inference.engines.spark RUN`, or `spark-submit …/spark.py RUN`.

A run's plan becomes a table with a row for each chunk, which Spark spreads over its executors. Each scores a chunk as a
batch worker would: it claims it, calls the model and writes to the sinks. So retried and speculative tasks change
nothing: a chunk that is done, or in somebody's hands, is refused at its claim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from inference.engines.driving import REFUSED
from inference.engines.executors import score_chunk
from inference.engines.runs import build_runs
from inference.errors import ForecacheError
from inference.logs import configure_logging
from inference.settings import Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Spark's own words for what it must be able to do here; the operator's `conf` comes after
_CONF = {
    # the model stays loaded in a Python worker from task to task
    "spark.python.worker.reuse": "true",
    "spark.ui.showConsoleProgress": "false",
}


def main() -> int:
    """Drive the run that the command line names, and return the exit code."""
    settings = load_settings()
    configure_logging("spark", form=settings.logs.format, level=settings.logs.level)
    run_id = sys.argv[1]
    try:
        runs = build_runs(settings)
        with session(settings, runs.show(run_id).model, run_id) as spark:
            runs.drive(run_id, partial(score_on, spark, settings, run_id))
    except ForecacheError as error:
        print(error.message)  # noqa: T201 - what the batch worker writes down
        return REFUSED
    return 0


@contextmanager
def session(settings: Settings, model: str, run_id: str) -> Iterator[SparkSession]:
    """Give a session of the model's cluster, which ends afterwards."""
    from pyspark.sql import SparkSession

    own = settings.models[model].batch.spark
    builder = SparkSession.builder.appName(f"forecache {run_id}")
    if not own.submit:  # spark-submit has told it
        builder = builder.master(own.master)
    for name, value in {**_CONF, **own.conf}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def score_on(spark: SparkSession, settings: Settings, run_id: str, chunks: Sequence[int]) -> None:
    """Score chunks, a task each."""
    context = spark.sparkContext
    rows = context.parallelize([(chunk,) for chunk in chunks], len(chunks)).toDF("chunk int")
    rows.mapInArrow(partial(_score, settings, run_id), "chunk int").count()


def _score(settings: Settings, run_id: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for chunk in batch.column("chunk").to_pylist():
            score_chunk(settings, run_id, chunk)
        yield batch


if __name__ == "__main__":
    sys.exit(main())
