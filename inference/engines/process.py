"""Runs a Spark driver as a process of its own, and says in the run what became of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO

from inference.batch.ledger import Ledger
from inference.batch.records import RunState
from inference.errors import Conflict
from inference.logs import get_logger

log = get_logger(__name__)

_LOOK_EVERY_S = 1.0
#: a driver that is asked to end has so long
_ENDS_WITHIN_S = 10.0
#: begins the line in which a driver says why it ends; Spark may write more after it
LAST_WORD = "forecache: "
#: set when this process ends: drivers end with it, and go on when it is back
ending = threading.Event()


@dataclass(frozen=True)
class SparkDriver:
    """Starts drivers and waits for them."""

    ledger: Ledger

    def drive(self, run_id: str) -> None:
        """Score what is left of a run on Spark, unless a driver does already.

        A driver that fails by itself fails the run, which `resume` takes up again; one that is killed is started
        again by the reconciler.

        Raises:
            NotFound: there is no such run.
            StoreUnavailable: Redis did not answer in time.
        """
        if self.ledger.load(run_id).state is not RunState.RUNNING or self.ledger.has_driver(run_id):
            return
        with tempfile.TemporaryFile() as said:
            status = self._wait(run_id, said)
            log.info("spark.driver_ended", run_id=run_id, status=status)
            if status > 0:
                self._fail(run_id, f"the Spark driver ended with status {status}: {_last_word(said)}")

    def _wait(self, run_id: str, said: IO[bytes]) -> int:
        """Return the driver's exit status, negative when it was killed or asked to end."""
        argv = [sys.executable, "-P", "-m", "inference.engines.spark", run_id]
        with subprocess.Popen(argv, stdout=said, stderr=said, start_new_session=True) as process:  # noqa: S603
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


def _last_word(said: IO[bytes]) -> str:
    """Return what the driver said last: its own reason, or else the last line of whoever spoke."""
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix(LAST_WORD) for line in lines if line.startswith(LAST_WORD)]
    return (own or lines or ["it said nothing"])[-1][:500]
