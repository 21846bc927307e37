"""The driver of a run on Spark or Ray: `python -P -m inference.engines.driver RUN`, or this file under `spark-submit`.

A driver hands out the numbers of the chunks that are left; processes of the cluster read, score and write them. The
maintenance worker starts drivers (`DriverProcess`), and writes into the run why a driver failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from inference.batch.engines import LAST_WORD, check_installed, last_word
from inference.batch.ledger import Ledger
from inference.batch.records import Engine, RunRecord, RunState
from inference.deployment import Deployment
from inference.engines import ray_cluster, spark
from inference.errors import Conflict, ForecacheError
from inference.logs import configure_logging, get_logger
from inference.redis.clients import WORKER
from inference.settings import Settings, load_settings

log = get_logger(__name__)

#: Hands out chunks by number, and returns when each is done or the run is over. Raises Unavailable if the cluster gives
#: up.
HandOut = Callable[[Settings, RunRecord, Sequence[int]], None]
HAND_OUT: Mapping[Engine, HandOut] = {Engine.SPARK: spark.hand_out, Engine.RAY: ray_cluster.hand_out}

_LOOK_EVERY_S = 1.0
#: a driver gets this long to end after SIGTERM
_ENDS_WITHIN_S = 10.0
#: set when this process ends: it ends its drivers too, and they go on when it is back
ending = threading.Event()


@dataclass(frozen=True)
class DriverProcess:
    """Starts drivers as processes of their own, and waits for them."""

    ledger: Ledger

    def drive(self, run_id: str) -> None:
        """Score the rest of a run on its cluster, unless a driver does so already.

        A driver that fails also fails the run, which can be resumed. The reconciler starts a killed driver again.

        Raises:
            NotFound: there is no such run.
            StoreUnavailable: Redis did not answer in time.
        """
        run = self.ledger.load(run_id)
        if run.state is not RunState.RUNNING or self.ledger.has_driver(run_id):
            return
        with tempfile.TemporaryFile() as output:
            status = self._wait(run_id, output)
            log.info("driver.ended", run_id=run_id, engine=run.engine.value, status=status)
            if status > 0:
                output.seek(0)
                reason = last_word(output.read().decode(errors="replace"))
                self._fail(run_id, f"the {run.engine.title()} driver ended with status {status}: {reason}")

    def _wait(self, run_id: str, output: IO[bytes]) -> int:
        """Return the driver's exit status; negative when a signal ended it."""
        argv = [sys.executable, "-P", "-m", "inference.engines.driver", run_id]
        with tempfile.TemporaryDirectory(prefix="run-", ignore_cleanup_errors=True) as folder:
            environment = {**os.environ, "TMPDIR": folder}
            process = subprocess.Popen(  # noqa: S603
                argv, stdout=output, stderr=output, start_new_session=True, env=environment
            )
            try:
                while not ending.is_set():
                    with suppress(subprocess.TimeoutExpired):
                        return process.wait(_LOOK_EVERY_S)
                return _end(process)
            finally:
                _end_family(process.pid)

    def _fail(self, run_id: str, error: str) -> None:
        run = self.ledger.load(run_id)
        log.warning("run.failed", run_id=run_id, error=error)
        try:
            self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error)
        except Conflict as overtaken:
            log.info("driver.run_is_over", run_id=run_id, reason=overtaken.message)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return -1


def _end_family(driver: int) -> None:
    """End the processes that a driver left behind. Agents of a Ray whose driver was killed take a minute to end."""
    end = time.monotonic() + _ENDS_WITHIN_S
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(driver, 0)
            time.sleep(0.1)
        os.killpg(driver, signal.SIGKILL)


def main(argv: Sequence[str]) -> int:
    """Score the rest of a run; return the exit status: 0 also when another driver does so, or the run is over."""
    if len(argv) != 1:
        print("usage: python -P -m inference.engines.driver RUN", file=sys.stderr)  # noqa: T201
        return 2
    settings = load_settings()
    configure_logging("driver", form=settings.logs.format, level=settings.logs.level)
    try:
        with Deployment(settings, WORKER) as deployment:
            _drive(settings, deployment.ledger, argv[0])
    except ForecacheError as error:
        print(f"{LAST_WORD}{error.message}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _drive(settings: Settings, ledger: Ledger, run_id: str) -> None:
    run = ledger.load(run_id)
    hand_out = HAND_OUT.get(run.engine)
    if hand_out is None:
        others = " or ".join(f"--engine {engine}" for engine in HAND_OUT)
        raise Conflict(f"run {run_id} is scored by {run.engine}: start one with {others}", field="run_id")
    check_installed(run.engine)
    with ledger.driver_lock(run_id).holding(f"driver of {run_id}") as held:
        if not held:
            log.info("driver.another_lives", run_id=run_id)
            return
        done = ledger.chunk_states(run_id).done
        left = [number for number in range(run.chunks_total or 0) if number not in done]
        if run.state is RunState.RUNNING and left:
            hand_out(settings, run, left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
