"""The driver of a run on Spark: `python -P -m inference.engines.spark RUN`, or this file under `spark-submit`.

A driver hands out the numbers of the chunks that are left, a Spark task each; executors read, score and write them.
The maintenance worker starts drivers (`SparkDriver`), and writes into the run why a driver failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from inference.batch.ledger import Ledger
from inference.batch.plan import check_engine
from inference.batch.records import Engine, RunRecord, RunState
from inference.deployment import Deployment
from inference.engines.executor import score_chunks
from inference.errors import Conflict, ForecacheError, Unavailable
from inference.logs import configure_logging, get_logger
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings
from inference.settings.loading import ENV_CONFIG

log = get_logger(__name__)

_LOOK_EVERY_S = 1.0
#: a driver gets this long to end after SIGTERM
_ENDS_WITHIN_S = 10.0
#: starts the line in which a driver says why it ends; Spark may write more after it
LAST_WORD = "forecache: "
#: set when this process ends: it ends its drivers too, and they go on when it is back
ending = threading.Event()


@dataclass(frozen=True)
class SparkDriver:
    """Starts Spark drivers as processes of their own, and waits for them."""

    ledger: Ledger

    def drive(self, run_id: str) -> None:
        """Score the rest of a run on Spark, unless a driver does so already.

        A driver that fails also fails the run, which can be resumed. The reconciler starts a killed driver again.

        Raises:
            NotFound: there is no such run.
            StoreUnavailable: Redis did not answer in time.
        """
        if self.ledger.load(run_id).state is not RunState.RUNNING or self.ledger.has_driver(run_id):
            return
        with tempfile.TemporaryFile() as output:
            status = self._wait(run_id, output)
            log.info("spark.driver_ended", run_id=run_id, status=status)
            if status > 0:
                self._fail(run_id, f"the Spark driver ended with status {status}: {_last_word(output)}")

    def _wait(self, run_id: str, output: IO[bytes]) -> int:
        """Return the driver's exit status; negative when a signal ended it."""
        argv = [sys.executable, "-P", "-m", "inference.engines.spark", run_id]
        with subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True) as process:  # noqa: S603
            while True:
                try:
                    return process.wait(_LOOK_EVERY_S)
                except subprocess.TimeoutExpired:
                    if ending.is_set():
                        return _end(process)

    def _fail(self, run_id: str, error: str) -> None:
        run = self.ledger.load(run_id)
        log.warning("run.failed", run_id=run_id, error=error)
        try:
            self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error)
        except Conflict as overtaken:
            log.info("spark.run_is_over", run_id=run_id, reason=overtaken.message)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return -1


def _last_word(output: IO[bytes]) -> str:
    """Return the driver's own reason; without one, the last line of its output."""
    output.seek(0)
    lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    reasons = [line.removeprefix(LAST_WORD) for line in lines if line.startswith(LAST_WORD)]
    return (reasons or lines or ["it said nothing"])[-1][:500]


def main(argv: Sequence[str]) -> int:
    """Score the rest of a run; return the exit status: 0 also when another driver does so, or the run is over."""
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
    with ledger.driver_lock(run_id).holding(f"driver of {run_id}") as held:
        if held:
            _score(settings, ledger, run)
        else:
            log.info("spark.driver_lives", run_id=run_id)


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
    """Return a Spark session. Spark's pages and logs show its configuration, so it holds no secret."""
    from pyspark.sql import SparkSession

    # executors on this machine use the same Python and settings; clusters name their own
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    configured = settings.models[run.model].batch.spark
    defaults = {"spark.app.name": run.run_id, "spark.ui.showConsoleProgress": "false"}
    named = os.environ.get(ENV_CONFIG)
    file = settings.path(named) if named else settings.root / "forecache.toml"
    if file.is_file():
        defaults[f"spark.executorEnv.{ENV_CONFIG}"] = str(file)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
