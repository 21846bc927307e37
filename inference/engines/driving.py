"""Starts the driver of a run on Spark in a process of its own, and tells the run when there can be none."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from inference.batch import Runs
from inference.errors import NotFound
from inference.logs import bound, get_logger
from inference.settings import Settings

log = get_logger(__name__)

#: PySpark 4 runs on these and later
OLDEST_JAVA = 17
#: the driver ends with this when the run is to fail with what it last printed
REFUSED = 3

_DRIVER = Path(__file__).with_name("spark.py")


def run_driver(settings: Settings, runs: Runs, run_id: str) -> None:
    """Drive a run on Spark until it is scored, or over. Safe to run twice, also at the same time.

    A run for which there can be no driver here fails, with what to install. One whose driver ends otherwise goes on
    with the next, which the reconciler asks for.
    """
    with bound(run_id=run_id):
        try:
            model = runs.show(run_id).model
        except NotFound as error:
            log.info("driver.dropped", reason=error.message)
            return
        problem = missing()
        if problem is None:
            done = subprocess.run(  # noqa: S603 - the operator's own command
                _command(settings, model, run_id), env=_environment(settings), stdout=subprocess.PIPE, check=False
            )
            log.info("driver.ended", code=done.returncode)
            if done.returncode == REFUSED:
                problem = done.stdout.decode(errors="replace").strip().splitlines()[-1]
        if problem is not None:
            log.error("driver.refused", error=problem)
            runs.fail(run_id, problem)


def missing() -> str | None:
    """Return what this machine lacks for a driver, with the fix; None when it has all."""
    if importlib.util.find_spec("pyspark") is None:
        return "runs on Spark need PySpark where batch workers run: pip install 'forecache[spark]'"
    java = _java()
    if java is None:
        return f"runs on Spark need Java {OLDEST_JAVA} or later where batch workers run: install it, or set JAVA_HOME"
    found = _java_version(java)
    if found is not None and found < OLDEST_JAVA:
        return f"runs on Spark need Java {OLDEST_JAVA} or later, and {java} is {found}: install one, or set JAVA_HOME"
    return None


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    own = Path(home, "bin", "java") if home else None
    return str(own) if own and own.is_file() else None if home else shutil.which("java")


def _java_version(java: str) -> int | None:
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found[1]) if found else None


def _command(settings: Settings, model: str, run_id: str) -> list[str]:
    submit = settings.models[model].batch.spark.submit
    return (
        [*submit, str(_DRIVER), run_id] if submit else [sys.executable, "-P", "-m", "inference.engines.spark", run_id]
    )


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a driver: this process's, its settings and its Python.

    Executors on this machine use the same Python; elsewhere `spark.pyspark.python` names theirs.
    """
    file = settings.root / "forecache.toml"
    own = {"PYSPARK_DRIVER_PYTHON": sys.executable}
    if "FORECACHE_CONFIG" not in os.environ and file.is_file():
        own["FORECACHE_CONFIG"] = str(file)
    return {"PYSPARK_PYTHON": sys.executable, **os.environ, **own}
