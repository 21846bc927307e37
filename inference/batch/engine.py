"""What scores a run's chunks, and whether this machine has what that needs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from inference.errors import BadInput, quoted

#: PySpark 4 runs on this version of Java and newer ones
_LEAST_JAVA = 17
_JAVA_ANSWERS_WITHIN_S = 30.0
# openjdk version "17.0.15" …; before 9: "1.8.0_412"
_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


class Engine(StrEnum):
    """What scores a run's chunks."""

    #: batch workers, a message for each chunk
    CELERY = "celery"
    #: a Spark driver and its executors
    SPARK = "spark"


def engine_of(name: str) -> Engine:
    """Return the engine of that name.

    Raises:
        BadInput: there is none.
    """
    try:
        return Engine(name)
    except ValueError as error:
        raise BadInput(f"engine {quoted(name)} is none of {', '.join(Engine)}", field="engine") from error


def check_engine(engine: Engine) -> None:
    """Do nothing when this machine has what the engine needs.

    Raises:
        BadInput: the extra or Java is missing, or Java is too old.
    """
    if engine is not Engine.SPARK:
        return
    if importlib.util.find_spec("pyspark") is None:
        raise BadInput("engine 'spark' needs PySpark: pip install 'forecache[spark]' here", field="engine")
    _check_java()


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else "java"
    if shutil.which(java) is None:
        place = f"JAVA_HOME ({home}) holds none" if home else "none is on PATH and JAVA_HOME is not set"
        raise BadInput(f"engine 'spark' needs Java {_LEAST_JAVA} or newer: {place}", field="engine")
    try:
        asked = subprocess.run(  # noqa: S603 - the administrator's own Java, from JAVA_HOME or PATH
            [java, "-version"], capture_output=True, text=True, timeout=_JAVA_ANSWERS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"engine 'spark' needs Java, and {java} does not answer: {error}", field="engine") from error
    found = _JAVA_VERSION.search(asked.stderr + asked.stdout)
    if asked.returncode or found is None:
        raise BadInput(f"engine 'spark' needs Java, and `{java} -version` does not tell one", field="engine")
    if int(found[1]) < _LEAST_JAVA:
        raise BadInput(f"engine 'spark' needs Java {_LEAST_JAVA} or newer: {java} is Java {found[1]}", field="engine")


def refuse_spark(run_id: str) -> NoReturn:
    """Stand in for what starts Spark drivers, in processes that start none."""
    raise BadInput(f"this process starts no Spark driver for run {run_id}", field="engine")
