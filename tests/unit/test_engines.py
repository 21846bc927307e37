"""What a machine must have to drive a run on Spark."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from inference.engines.driving import missing
from inference.settings import load_settings


def java(folder: Path, version: str) -> Path:
    """A Java that only tells its version."""
    program = folder / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-01' >&2\n")
    program.chmod(0o755)
    return folder


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """PySpark is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize(
    ("version", "said"), [("1.8.0_402", "is 8"), ("11.0.2", "is 11"), ("17.0.15", None), ("21", None)]
)
def test_java_must_be_young_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, said: str | None
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path, version)))
    told = missing()
    assert told is None if said is None else said in str(told)


@pytest.mark.usefixtures("spark")
def test_without_java_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "need Java 17 or later" in str(missing())
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "need Java 17 or later" in str(missing())


def test_without_pyspark_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'forecache[spark]'" in str(missing())


def test_an_engine_that_there_is_not_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text('[models.m]\npath = "m"\n[models.m.batch]\nengine = "flink"\n')
    with pytest.raises(Exception, match=r"(?s)engine.*'celery' or 'spark'"):
        load_settings(file)
