"""What a machine without an engine's needs is told before anything is written, and how chunks go to Ray's actors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from inference.batch.engines import check_engine, check_installed, last_word, ray_address
from inference.batch.records import Engine
from inference.engines import executor
from inference.engines.ray_cluster import actor_options, ray_sentence
from inference.engines.spark import spark_sentence
from inference.errors import BadInput
from inference.settings import BatchSettings, ModelSettings, RaySettings
from tests.support.ports import free_port


@pytest.fixture
def with_pyspark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def _model(**ray: object) -> ModelSettings:
    return ModelSettings(path=Path("m"), features="t.parquet", batch=BatchSettings(ray=RaySettings(**ray)))


def _java(folder: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    java = folder / "bin" / "java"
    java.parent.mkdir()
    # as Java does, it takes no other spelling of the option
    java.write_text(f"#!/bin/sh\n[ \"$*\" = -version ] && echo '{says}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(folder))


def test_an_unknown_engine_is_refused_with_those_that_exist() -> None:
    with pytest.raises(BadInput, match="'flink' is none of celery, spark, ray"):
        Engine.named("flink")


def test_spark_without_its_extra_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'forecache\[spark\]'"):
        check_installed(Engine.SPARK)


def test_celery_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_engine(Engine.CELERY, _model())


@pytest.mark.usefixtures("with_pyspark")
def test_spark_without_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="needs Java 17 or newer: none is on PATH"):
        check_installed(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
def test_a_java_home_without_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"JAVA_HOME .* holds none"):
        check_installed(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
@pytest.mark.parametrize("says", ['openjdk version "11.0.2"', 'java version "1.8.0_412"'])
def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    _java(tmp_path, says, monkeypatch)
    with pytest.raises(BadInput, match=r"17 or newer: .* is Java (11|8)"):
        check_installed(Engine.SPARK)


@pytest.mark.usefixtures("with_pyspark")
@pytest.mark.parametrize("says", ['openjdk version "17.0.15"', 'openjdk version "21" 2023-09-19'])
def test_a_java_that_is_new_enough_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    _java(tmp_path, says, monkeypatch)
    check_installed(Engine.SPARK)


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
    _, worker = executor.chunk_worker.__wrapped__("spark")
    assert worker.give_way.__func__ is Yields.give_way
    assert "slow" in built[0]


def test_ray_without_its_extra_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'forecache\[ray\]'"):
        check_engine(Engine.RAY, _model())


def test_the_address_of_the_settings_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(_model()) is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert ray_address(_model()) == "auto"
    assert ray_address(_model(address="ray://head:10001")) == "ray://head:10001"


_CPU_NODES = [{"Resources": {"CPU": 8.0}}, {"Resources": {"CPU": 3.0}}, {"Resources": {}}]
_GPU_NODES = [*_CPU_NODES, {"Resources": {"CPU": 16.0, "GPU": 4.0}}]


@pytest.mark.parametrize(
    ("nodes", "ray", "options", "room"),
    [
        (_CPU_NODES, {}, {"num_cpus": 1.0}, 11),
        # an actor does not span nodes
        (_CPU_NODES, {"cpus_per_actor": 2}, {"num_cpus": 2.0}, 5),
        (_GPU_NODES, {}, {"num_gpus": 1, "num_cpus": 0}, 4),
        (_GPU_NODES, {"gpus_per_actor": 0.5}, {"num_gpus": 0.5, "num_cpus": 0}, 8),
        (_GPU_NODES, {"gpus_per_actor": 0}, {"num_cpus": 1.0}, 27),
        ([], {}, {"num_cpus": 1.0}, 0),
    ],
)
def test_there_is_an_actor_for_each_gpu_or_else_for_each_processor(
    nodes: list[dict[str, object]], ray: dict[str, object], options: dict[str, object], room: int
) -> None:
    assert actor_options(nodes, RaySettings(**ray)) == ({**options, "max_restarts": 0}, room)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{}", "127.0.0.1:{}"])
def test_an_address_where_nothing_listens_is_told_before_ray_tries_for_minutes(address: str) -> None:
    pytest.importorskip("ray")
    address = address.format(free_port())
    with pytest.raises(BadInput, match=rf"nothing listens at {address} .*correct `ray.address`"):
        check_engine(Engine.RAY, _model(address=address))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("ray client connection timeout"), "does not answer: correct `ray.address`, or start it"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1"),
            "runs another Ray or Python: Version mismatch: The cluster was started with: Ray: 2.50.0 Python: 3.12.1; "
            "install the same",
        ),
        (ValueError("Invalid address format: x"), "correct `ray.address`: Invalid address format: x"),
        (RuntimeError(""), "gave up: no reason given"),
    ],
)
def test_what_ray_says_is_told_in_one_line_with_the_address(error: Exception, sentence: str) -> None:
    told = ray_sentence("ray://head:10001", error)
    assert told.startswith("the Ray cluster at ray://head:10001 ")
    assert sentence in told
    assert "\n" not in told


def test_a_drivers_own_reason_is_told_whatever_its_library_writes_after_it() -> None:
    assert last_word("starting\nforecache: no node\nbye\n") == "no node"
    assert last_word("starting\nSegmentation fault\n\n") == "Segmentation fault"
    assert last_word("\n") == "it said nothing"
