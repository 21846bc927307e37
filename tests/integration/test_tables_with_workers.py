"""Runs over a Delta table, an Iceberg table, a CSV file and a query, whose rows change while the runs read them."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from inference.redis.keys import TableKind
from tests.support.lake_tables import catalog_properties, delete_by_position, new_catalog
from tests.support.plain_models import write_slow_sum_model
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROWS = 2_000
_MODEL = """
[models.{name}]
path = "model"
allow_code = true
features = "{features}"
[models.{name}.batch]
rows_per_chunk = 100
micro_batch_rows = 4
max_drift = 1000
"""


def rows(offset: float, count: int = ROWS) -> pa.Table:
    """Ids with leading zeros, so that a reader who takes them for numbers is found out."""
    return pa.table({
        "entity_id": [f"{number:05}" for number in range(count)],
        "a": np.arange(count, dtype=np.float32),
        "b": np.full(count, offset, np.float32),
    })  # fmt: skip


class Tables:
    """One table of each kind in a folder; `write` replaces the rows of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_deltalake(folder / "lake", rows(0))
        catalog = new_catalog(folder / "catalog")
        properties = {"format-version": "2"}
        self.iceberg = catalog.create_table("lake.users", schema=rows(0).schema, properties=properties)
        self.iceberg.append(rows(0))
        self.write_csv(0)
        query = "SELECT entity_id, a, b FROM users"
        (folder / "users.toml").write_text(f'url = "sqlite:///users.db"\nquery = "{query}"\n')
        self.write_database(0)

    def write_csv(self, offset: float) -> None:
        with (self.folder / "new.csv").open("w", newline="") as file:
            csv.writer(file).writerows([rows(0).column_names, *zip(*rows(offset).to_pydict().values(), strict=True)])
        (self.folder / "new.csv").replace(self.folder / "users.csv")

    def write_database(self, offset: float) -> None:
        with closing(sqlite3.connect(self.folder / "users.db")) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS users (entity_id TEXT, a REAL, b REAL)")
            database.execute("DELETE FROM users")
            database.executemany(
                "INSERT INTO users VALUES (?, ?, ?)", zip(*rows(offset).to_pydict().values(), strict=True)
            )

    def write(self, name: str, offset: float) -> None:
        writers: dict[str, Callable[[], Any]] = {
            "delta": lambda: write_deltalake(self.folder / "lake", rows(offset), mode="overwrite"),
            "iceberg": lambda: self.iceberg.overwrite(rows(offset)),
            "csv": lambda: self.write_csv(offset),
            "sql": lambda: self.write_database(offset),
        }
        writers[name]()


FEATURES = {"delta": "delta:lake", "iceberg": "iceberg:test.lake.users", "csv": "users.csv", "sql": "sql:users.toml"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def stack(tables: Tables) -> Iterator[Stack]:
    toml = "".join(_MODEL.format(name=name, features=features) for name, features in FEATURES.items())
    write_slow_sum_model(tables.folder / "model", ["a", "b"], seconds=0.002)
    of_catalog = catalog_properties(tables.folder / "catalog")
    environment = {f"PYICEBERG_CATALOG__TEST__{name.upper()}": value for name, value in of_catalog.items()}
    with Stack(tables.folder, toml) as stack:
        for process in ("gpu", "maintenance", "api"):
            stack.start(process, environment=environment)
        stack.wait_ready()
        yield stack


def state_of(stack: Stack, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = httpx.get(f"{stack.url}/runs/{run_id}", timeout=10).raise_for_status().json()
    return run


def request(stack: Stack, model: str, **body: Any) -> str:
    run_id: str = httpx.post(f"{stack.url}/runs", json={"model": model, **body}).raise_for_status().json()["run_id"]
    return run_id


def assert_serves(stack: Stack, model: str, offset: float, *, but: tuple[int, ...] = ()) -> None:
    table = stack.deployment.table(TableKind.PREDICTIONS, model)
    found = table.read([f"{number:05}" for number in range(ROWS)])
    values = {number: list(entry.values.values()) for number, entry in enumerate(found) if entry is not None}
    assert values == {number: [number + offset] for number in range(ROWS) if number not in but}


@pytest.mark.parametrize("name", FEATURES)
def test_a_table_that_is_overwritten_in_mid_run_is_scored_as_it_was(stack: Stack, tables: Tables, name: str) -> None:
    run_id = request(stack, name)
    wait_for(lambda: state_of(stack, run_id)["chunks_done"] >= 2, "two chunks", 60)
    tables.write(name, 1_000)
    assert state_of(stack, run_id)["state"] == "running"

    assert stack.wait_run(run_id)["state"] == "published"
    assert_serves(stack, name, 0)

    assert stack.wait_run(request(stack, name))["state"] == "published"
    assert_serves(stack, name, 1_000)


def test_what_was_written_for_runs_goes_with_them(stack: Stack, tables: Tables) -> None:
    runs = [stack.wait_run(request(stack, "csv")) for _ in range(2)]
    assert [(run["state"], run["source"]) for run in runs] == [("published", "users.csv")] * 2
    kept = {path.name for path in (tables.folder / ".forecache/snapshots/csv").iterdir()}
    published = stack.deployment.predictions("csv").generations.published()
    # the run that serves, the one that can serve again, and the one before them, until the next run begins
    assert {one.run_id for one in published if one} <= kept
    assert len(kept) <= 3
    assert not (tables.folder / ".forecache/snapshots/delta").exists()


def test_rows_that_iceberg_deleted_are_not_scored(stack: Stack, tables: Tables) -> None:
    tables.write("iceberg", 2_000)
    delete_by_position(tables.iceberg, 7)
    run = stack.wait_run(request(stack, "iceberg"))
    assert run["state"] == "published"
    assert list((tables.folder / ".forecache/snapshots/iceberg" / run["run_id"]).iterdir())
    assert run["source"] == f"iceberg:test.lake.users@{tables.iceberg.refresh().current_snapshot().snapshot_id}"
    assert_serves(stack, "iceberg", 2_000, but=(7,))


def test_a_request_may_name_a_version_and_no_other_table(stack: Stack, tables: Tables) -> None:
    tables.write("delta", 3_000)
    newest = DeltaTable(tables.folder / "lake").version()
    write_deltalake(tables.folder / "secret", rows(9))

    assert stack.wait_run(request(stack, "delta", source=f"delta:lake@{newest - 1}"))["state"] == "published"
    assert_serves(stack, "delta", 1_000)
    for source in (
        "delta:secret",
        "delta:lake/../secret",
        "iceberg:test.lake.users",
        "secret",
        "users.csv",
        "sql:users.toml",
    ):
        refused = httpx.post(f"{stack.url}/runs", json={"model": "delta", "source": source})
        assert (refused.status_code, refused.json()["field"]) == (400, "source"), source


def test_a_table_that_cannot_be_read_fails_the_run_and_what_serves_stays(stack: Stack, tables: Tables) -> None:
    path = tables.folder / "users.csv"
    good = path.read_text()
    path.write_text(good + "99999,1,oops\n")
    run = stack.wait_run(request(stack, "csv"))
    assert run["state"] == "failed"
    assert "column 'b' holds values of type double, but" in run["error"]
    assert "users.csv, row 2,002 has 'oops'" in run["error"]
    assert_serves(stack, "csv", 1_000)
    path.write_text(good)


def test_doctor_knows_the_tables(stack: Stack, tables: Tables) -> None:
    done = stack.cli("doctor", "--offline", "--json")
    found = {(one["subject"], one["status"]) for one in json.loads(done.stdout) if one["check"] == "table"}
    assert {("csv", "ok"), ("delta", "ok"), ("sql", "ok")} <= found
