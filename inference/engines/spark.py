"""The driver of a run on Spark: `python -P -m inference.engines.spark RUN`, or this file under `spark-submit`.

It hands out the numbers of the chunks that are left, a task each; executors read, score and write them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from inference.batch.engine import Engine, check_engine
from inference.batch.leases import Lease
from inference.batch.ledger import Ledger
from inference.batch.records import RunRecord, RunState
from inference.deployment import Deployment
from inference.engines.executor import score_chunks
from inference.engines.process import LAST_WORD
from inference.errors import Conflict, ForecacheError, Unavailable
from inference.logs import configure_logging, get_logger
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings
from inference.settings.loading import ENV_CONFIG

log = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Score what is left of a run; returns the exit status: 0 also when another driver does it, or the run is over."""
    if len(argv) != 1:
        print("usage: python -P -m inference.engines.spark RUN", file=sys.stderr)  # noqa: T201
        return 2
    settings = load_settings()
    configure_logging("spark-driver", form=settings.logs.format, level=settings.logs.level)
    try:
        with Deployment(settings, WORKER) as deployment:
            _drive(settings, deployment.ledger, argv[0])
    except ForecacheError as error:
        print(f"{LAST_WORD}{error.message}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _drive(settings: Settings, ledger: Ledger, run_id: str) -> None:
    run = ledger.load(run_id)
    if run.engine is not Engine.SPARK:
        raise Conflict(f"run {run_id} is scored by {run.engine}: start one with --engine spark", field="run_id")
    check_engine(run.engine)
    lock = ledger.driver_lock(run_id)
    taken = lock.acquire(blocking=False)
    if not taken:
        log.info("spark.driver_lives", run_id=run_id)
        return

    try:
        with Lease(lock.renew, name=f"driver of {run_id}"):
            _score(settings, ledger, run)
    finally:
        lock.let_go()


def _score(settings: Settings, ledger: Ledger, run: RunRecord) -> None:
    done = ledger.chunk_states(run.run_id).done
    left = [number for number in range(run.chunks_total or 0) if number not in done]
    if run.state is not RunState.RUNNING or not left:
        return
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        _hand_out(_session(settings, run), run, left)
    except (Py4JError, PySparkException) as error:
        where = "spark-submit" if _submitted() else settings.models[run.model].batch.spark.master
        raise Unavailable(f"Spark ({where}) gave up: {spark_sentence(str(error))}") from error


def _hand_out(session: Any, run: RunRecord, left: Sequence[int]) -> None:
    try:
        numbers = session.sparkContext.parallelize([(number,) for number in left], len(left))
        chunks = session.createDataFrame(numbers, "chunk long")
        log.info("spark.started", run_id=run.run_id, chunks=len(left), master=session.sparkContext.master)
        chunks.mapInArrow(partial(score_chunks, run.run_id), "chunk long").foreach(_ignore)
    finally:
        session.stop()


def _session(settings: Settings, run: RunRecord) -> Any:
    """Return a Spark session. No secret goes into its configuration, which Spark's pages and logs show."""
    from pyspark.sql import SparkSession

    # executors of a master on this machine find the same Python and settings; others name their own
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    asked = settings.models[run.model].batch.spark
    own = {"spark.app.name": run.run_id, "spark.ui.showConsoleProgress": "false"}
    named = os.environ.get(ENV_CONFIG)
    file = settings.path(named) if named else settings.root / "forecache.toml"
    if file.is_file():
        own[f"spark.executorEnv.{ENV_CONFIG}"] = str(file)
    builder = SparkSession.builder
    if not _submitted():
        builder = builder.master(asked.master)
    for name, value in (own | asked.conf).items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def spark_sentence(told: str) -> str:
    """Return what went wrong of what Spark says about it: no frames of stacks, no lines that only lead there.

    A Python error on an executor is told by its own last line, which names it.
    """
    of_python = told.partition("Traceback (most recent call last):")[2] or told
    for line in of_python.splitlines():
        if line.strip() and not line.startswith((" ", "\t", "Caused by", "An error occurred while calling")):
            return line.removeprefix(": ")
    return "no reason given"


def _submitted() -> bool:
    """Whether `spark-submit` started this process, which names the master then."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _ignore(row: Any) -> None:
    """Take a chunk's number that nobody needs."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
