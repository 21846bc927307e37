"""doctor: fallbacks. The databases are real SQLite files."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from app.cli.doctor import models
from app.cli.doctor.findings import Status
from app.cli.doctor.models import check_fallbacks
from inference.settings import load_settings

DATABASE = """
[[models.m.fallbacks]]
kind = "sql"
name = "shop"
url = "{url}"
query = "{query}"
timeout = "{timeout}"
"""
FUNCTION = """
[[models.m.fallbacks]]
kind = "function"
name = "rules"
function = "doctor_rules:features"
"""
QUERY = "SELECT entity_id, x FROM users WHERE entity_id IN :ids"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE users (entity_id TEXT, x REAL)")
        connection.execute("INSERT INTO users VALUES ('u1', 1.5)")
    connection.close()
    return tmp_path


def database(folder: Path, *, query: str = QUERY, timeout: str = "2s", file: str = "shop.db") -> str:
    return DATABASE.format(url=f"sqlite:///{folder / file}", query=query, timeout=timeout)


def looked_at(folder: Path, *sections: str) -> dict[str, tuple[Status, str]]:
    (folder / "forecache.toml").write_text('[models.m]\npath = "m"\n' + "".join(sections))
    found = check_fallbacks(load_settings(folder / "forecache.toml"))
    return {one.subject: (one.status, one.detail) for one in found}


def test_models_without_fallbacks_have_one_line(folder: Path) -> None:
    assert looked_at(folder) == {"all models": (Status.OK, "none set: what is not stored is unknown")}


def test_a_database_that_answers_in_time_is_as_it_should_be(folder: Path) -> None:
    ((status, detail),) = looked_at(folder, database(folder)).values()
    assert (status, "the database answers in" in detail) == (Status.OK, True)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"query": "SELECT entity_id FROM nowhere WHERE entity_id IN :ids"}, "no such table: nowhere"),
        ({"file": "gone/shop.db"}, "unable to open database file"),
    ],
)
def test_one_that_cannot_be_asked_is_an_error_in_its_own_words(
    folder: Path, changed: dict[str, str], says: str
) -> None:
    found = looked_at(folder, database(folder, **changed))
    status, detail = found["m, shop"]
    assert status is Status.ERROR
    assert says in detail
    assert "SELECT" not in detail


def test_one_that_is_slower_than_its_timeout_is_to_be_looked_at(folder: Path) -> None:
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT max(i) FROM n"
    query = f"SELECT entity_id, ({counting}) AS x FROM users WHERE entity_id IN :ids OR ({counting}) < 0"
    status, detail = looked_at(folder, database(folder, query=query, timeout="1ms"))["m, shop"]
    assert (status, "over its timeout of 1 ms" in detail) == (Status.WARNING, True), detail


def test_one_that_does_not_answer_keeps_nobody_waiting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DATABASES_WITHIN_S", 0.05)
    monkeypatch.setattr(models.SqlSource, "fetch", lambda *_: time.sleep(1))
    assert looked_at(folder, database(folder))["m, shop"] == (Status.ERROR, "no answer within 0.05 s")


def test_a_function_s_module_is_looked_for_and_not_run(folder: Path) -> None:
    status, detail = looked_at(folder, FUNCTION)["m, rules"]
    assert (status, "no module 'doctor_rules'" in detail) == (Status.ERROR, True)
    (folder / "doctor_rules.py").write_text("raise SystemExit('it was run')\n")
    assert looked_at(folder, FUNCTION)["m, rules"][0] is Status.OK
