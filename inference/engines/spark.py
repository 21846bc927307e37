"""Hands out a run's chunks on Spark, a task each. Executors' Python workers score them (`executor`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from inference.batch.records import RunRecord
from inference.engines.executor import settings_file, settle
from inference.errors import Unavailable
from inference.logs import get_logger
from inference.settings import Settings
from inference.settings.loading import ENV_CONFIG

log = get_logger(__name__)


def hand_out(settings: Settings, run: RunRecord, numbers: Sequence[int]) -> None:
    """Score chunks on Spark; return when each is done or the run is over.

    Raises:
        Unavailable: Spark gave up.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        _hand_out(_session(settings, run), run, numbers)
    except (Py4JError, PySparkException) as error:
        where = "spark-submit" if _submitted() else settings.models[run.model].batch.spark.master
        raise Unavailable(f"Spark ({where}) gave up: {spark_sentence(str(error))}") from error


def score_chunks(run_id: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the chunks of the column `chunk`, and yield each batch of numbers when its chunks are done.

    A claim of another worker is no reason to return: Spark ends the slower attempts as soon as one returns.
    """
    for batch in batches:
        for number in batch.column("chunk").to_pylist():
            while not settle("spark", run_id, number):
                pass
        yield batch


def _hand_out(session: Any, run: RunRecord, left: Sequence[int]) -> None:
    try:
        numbers = session.sparkContext.parallelize([(number,) for number in left], len(left))
        chunks = session.createDataFrame(numbers, "chunk long")
        log.info("spark.started", run_id=run.run_id, chunks=len(left), master=session.sparkContext.master)
        chunks.mapInArrow(partial(score_chunks, run.run_id), "chunk long").foreach(_ignore)
    finally:
        session.stop()


def _session(settings: Settings, run: RunRecord) -> Any:
    """Return a Spark session. Spark's pages and logs show its configuration, so it holds no secret."""
    from pyspark.sql import SparkSession

    # executors on this machine use the same Python and settings; clusters name their own
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    configured = settings.models[run.model].batch.spark
    defaults = {"spark.app.name": run.run_id, "spark.ui.showConsoleProgress": "false"}
    if file := settings_file(settings):
        defaults[f"spark.executorEnv.{ENV_CONFIG}"] = file
    builder = SparkSession.builder
    if not _submitted():
        builder = builder.master(configured.master)
    for name, value in (defaults | configured.conf).items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def spark_sentence(report: str) -> str:
    """Return the line of Spark's report that names the error, without stack traces and lines that lead there.

    For a Python error on an executor, it is the last line of its traceback.
    """
    of_python = report.partition("Traceback (most recent call last):")[2] or report
    for line in of_python.splitlines():
        if line.strip() and not line.startswith((" ", "\t", "Caused by", "An error occurred while calling")):
            return line.removeprefix(": ")
    return "no reason given"


def _submitted() -> bool:
    """Return whether `spark-submit` started this process; it names the master then."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _ignore(row: Any) -> None:
    """Take a chunk's number and do nothing: the chunk is scored."""
