"""The engines that score a run's chunks, as the planner and the reconciler see them.

All of them score under the claims of one ledger. Batch workers get a message for each chunk; Spark and Ray have a
driver (`inference.engines`) that hands out all chunks of a run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference.batch.records import Engine, RunRecord
from inference.errors import BadInput
from inference.settings import ModelSettings, Settings

#: PySpark 4 runs on this version of Java and newer ones
_LEAST_JAVA = 17
_JAVA_ANSWERS_WITHIN_S = 30.0
# openjdk version "17.0.15" …; before 9: "1.8.0_412"
_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')
_LISTENS_WITHIN_S = 3.0
#: for so long a check of a Ray cluster may take; Ray itself tries to connect for half a minute
_RAY_ANSWERS_WITHIN_S = 90.0
#: starts the line in which a driver says why it ends; Spark and Ray may write more after it
LAST_WORD = "forecache: "


class ChunkEngine(Protocol):
    """Gets the chunks of runs scored. Chunks that nobody finishes are handed over again."""

    def check(self, run: RunRecord) -> None:
        """Check that this machine has what the engine needs, before anything is opened.

        Raises:
            BadInput: something is missing, too old, or does not answer.
        """

    def most_in_flight(self, run: RunRecord) -> int:
        """Return how many chunks may be handed over and not finished."""

    def hand_over(self, run_id: str, numbers: Sequence[int]) -> None:
        """Have these chunks scored, sooner or later. Safe to call twice.

        Raises:
            BrokerUnavailable: the broker refuses or does not answer.
        """


@dataclass(frozen=True)
class BatchWorkers:
    """Celery's batch workers."""

    settings: Settings
    send_chunks: Callable[[str, Sequence[int]], None]

    def check(self, run: RunRecord) -> None:
        """See `ChunkEngine.check`: nothing is needed."""

    def most_in_flight(self, run: RunRecord) -> int:
        """See `ChunkEngine.most_in_flight`."""
        return self.settings.models[run.model].batch.max_in_flight

    def hand_over(self, run_id: str, numbers: Sequence[int]) -> None:
        """See `ChunkEngine.hand_over`."""
        self.send_chunks(run_id, numbers)


@dataclass(frozen=True)
class DrivenCluster:
    """A cluster of Spark or Ray. If chunks are due, the run has no driver."""

    settings: Settings
    start_driver: Callable[[str], None]

    def check(self, run: RunRecord) -> None:
        """See `ChunkEngine.check`."""
        check_engine(run.engine, self.settings.models[run.model])

    def most_in_flight(self, run: RunRecord) -> int:
        """See `ChunkEngine.most_in_flight`: a driver hands out all chunks itself."""
        return run.chunks_total or 0

    def hand_over(self, run_id: str, numbers: Sequence[int]) -> None:  # noqa: ARG002 - a driver sees which are left
        """See `ChunkEngine.hand_over`."""
        self.start_driver(run_id)


def make_engines(
    settings: Settings, send_chunks: Callable[[str, Sequence[int]], None], start_driver: Callable[[str], None]
) -> Mapping[Engine, ChunkEngine]:
    """Return every engine by its name."""
    driven = DrivenCluster(settings, start_driver)
    return {Engine.CELERY: BatchWorkers(settings, send_chunks), Engine.SPARK: driven, Engine.RAY: driven}


def check_engine(engine: Engine, model: ModelSettings) -> None:
    """Check that this machine has what an engine needs for runs of a model.

    Raises:
        BadInput: the extra or Java is missing, Java is too old, or no Ray cluster of this version answers.
    """
    look_for_engine(engine, model)
    address = ray_address(model)
    if engine is Engine.RAY and address is not None:
        _check_ray(address)


def look_for_engine(engine: Engine, model: ModelSettings) -> None:
    """Check in some seconds that an engine is installed, and that its Ray cluster listens.

    Raises:
        BadInput: the extra or Java is missing, Java is too old, or nothing listens at `ray.address`.
    """
    check_installed(engine)
    address = ray_address(model)
    if engine is not Engine.RAY or address is None:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isascii() and port.isdecimal()):  # `auto`, or what Ray itself refuses
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENS_WITHIN_S).close()
    except (OSError, OverflowError) as error:  # left to itself, Ray tries for minutes and then aborts the process
        raise BadInput(
            f"engine 'ray': nothing listens at {address} ({error}): correct `ray.address`, or start the cluster "
            "(`ray start --head`)",
            field="engine",
        ) from error


def ray_address(model: ModelSettings) -> str | None:
    """Return the address of the Ray cluster to join; None for a Ray of the run's own."""
    return model.batch.ray.address or os.environ.get("RAY_ADDRESS") or None


def check_installed(engine: Engine) -> None:
    """Check that an engine's library, and Java for Spark, are installed here.

    Raises:
        BadInput: one is missing or too old.
    """
    if engine is Engine.SPARK:
        if importlib.util.find_spec("pyspark") is None:
            raise BadInput("engine 'spark' needs PySpark: pip install 'forecache[spark]' here", field="engine")
        _check_java()
    if engine is Engine.RAY and importlib.util.find_spec("ray") is None:
        raise BadInput("engine 'ray' needs Ray: pip install 'forecache[ray]' here", field="engine")


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else "java"
    if shutil.which(java) is None:
        place = f"JAVA_HOME ({home}) holds none" if home else "none is on PATH and JAVA_HOME is not set"
        raise BadInput(f"engine 'spark' needs Java {_LEAST_JAVA} or newer: {place}", field="engine")
    try:
        answer = subprocess.run(  # noqa: S603 - the administrator's own Java, from JAVA_HOME or PATH
            [java, "-version"], capture_output=True, text=True, timeout=_JAVA_ANSWERS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"engine 'spark' needs Java, and {java} does not answer: {error}", field="engine") from error
    found = _JAVA_VERSION.search(answer.stderr + answer.stdout)
    if answer.returncode or found is None:
        raise BadInput(f"engine 'spark' needs Java, and `{java} -version` tells no version", field="engine")
    if int(found[1]) < _LEAST_JAVA:
        raise BadInput(f"engine 'spark' needs Java {_LEAST_JAVA} or newer: {java} is Java {found[1]}", field="engine")


def _check_ray(address: str) -> None:
    """Join the cluster from a process of its own: Ray keeps a process in its cluster, with threads of its own."""
    argv = [sys.executable, "-P", "-m", "inference.engines.ray_cluster", address]
    try:
        answer = subprocess.run(  # noqa: S603 - our own module; the administrator wrote the address
            argv, capture_output=True, text=True, errors="replace", timeout=_RAY_ANSWERS_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"engine 'ray': the cluster at {address} does not answer within {_RAY_ANSWERS_WITHIN_S:.0f} s: "
            "correct `ray.address`, or start its nodes",
            field="engine",
        ) from error
    if answer.returncode:
        raise BadInput(f"engine 'ray': {last_word(answer.stdout + answer.stderr)}", field="engine")


def last_word(output: str) -> str:
    """Return a driver's own reason for its end; without one, the last line of its output."""
    lines = [line for line in output.splitlines() if line.strip()]
    reasons = [line.removeprefix(LAST_WORD) for line in lines if line.startswith(LAST_WORD)]
    return (reasons or lines or ["it said nothing"])[-1][:500]
