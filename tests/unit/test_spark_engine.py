"""What a machine without Spark's needs is told, before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from inference.batch.plan import check_engine
from inference.batch.records import Engine
from inference.engines import executor
from inference.engines.spark import spark_sentence
from inference.errors import BadInput


@pytest.fixture
def with_pyspark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def _java(folder: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    java = folder / "bin" / "java"
    java.parent.mkdir()
    # as Java does, it takes no other spelling of the option
    java.write_text(f"#!/bin/sh\n[ \"$*\" = -version ] && echo '{says}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(folder))


def test_an_unknown_engine_is_refused_with_those_that_exist() -> None:
    with pytest.raises(BadInput, match="'flink' is none of celery, spark"):
        Engine.named("flink")


def test_spark_without_its_extra_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'forecache\[spark\]'"):
        check_engine(Engine.SPARK)


def test_celery_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_engine(Engine.CELERY)


@pytest.mark.usefixtures("with_pyspark")
def test_spark_without_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="needs Java 17 or newer: none is on PATH"):
        check_engine(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
def test_a_java_home_without_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"JAVA_HOME .* holds none"):
        check_engine(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
@pytest.mark.parametrize("says", ['openjdk version "11.0.2"', 'java version "1.8.0_412"'])
def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    _java(tmp_path, says, monkeypatch)
    with pytest.raises(BadInput, match=r"17 or newer: .* is Java (11|8)"):
        check_engine(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
@pytest.mark.parametrize("says", ['openjdk version "17.0.15"', 'openjdk version "21" 2023-09-19'])
def test_a_java_that_is_new_enough_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    _java(tmp_path, says, monkeypatch)
    check_engine(Engine.SPARK)


#: what PySpark raised, cut short in the middle
REFUSED = """An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.
: org.apache.spark.SparkIllegalArgumentException: The value 'soon' is invalid.
\tat org.apache.spark.SparkConf.get(SparkConf.scala:488)
\tat java.base/java.lang.Thread.run(Thread.java:840)
Caused by: java.lang.NumberFormatException: soon
\t... 1 more
"""
RAISED_ON_AN_EXECUTOR = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "inference/batch/worker.py", line 80, in score
    raise SourceError(text)
inference.errors.SourceError: t.parquet was replaced

\tat org.apache.spark.api.python.BasePythonRunner.handle(PythonRunner.scala:581)
\tat java.base/java.lang.Thread.run(Thread.java:840)
"""


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (REFUSED, "org.apache.spark.SparkIllegalArgumentException: The value 'soon' is invalid."),
        (RAISED_ON_AN_EXECUTOR, "inference.errors.SourceError: t.parquet was replaced"),
        ("[JOB_ABORTED] Job aborted.", "[JOB_ABORTED] Job aborted."),
        ("", "no reason given"),
    ],
)
def test_what_spark_says_is_told_without_its_stacks(told: str, sentence: str) -> None:
    assert spark_sentence(told) == sentence


def test_an_executor_gives_way_to_requests_before_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "m"\n[models.m.realtime]\nqueue = "slow"\n')
    monkeypatch.chdir(tmp_path)
    built: list[tuple[str, ...]] = []

    class Yields:
        def __init__(self, client: object, keys: object, queues: tuple[str, ...]) -> None:
            built.append(tuple(queues))

        def give_way(self, device: str | None) -> None:
            raise NotImplementedError

    monkeypatch.setattr(executor, "Yielding", Yields)
    monkeypatch.setattr(executor, "configure_logging", lambda *_, **__: None)
    _, worker = executor._worker.__wrapped__()
    assert worker.give_way.__func__ is Yields.give_way
    assert "slow" in built[0]
