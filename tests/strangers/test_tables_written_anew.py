"""A delta run over a table that another tool has written anew: the same values in other forms are no changes.

The cases come from public reports on tools that synchronise or recompute only what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState, RunView
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import ModelRegistry, VersionRecord
from inference.redis.clients import Client
from inference.schema import Block, DType, Signature, TensorSpec
from inference.settings import BatchSettings, ModelSettings, Settings
from tests.integration.test_delta_runs import DeltaWorld
from tests.integration.test_runs import KEYS, Doubling, record

pytestmark = pytest.mark.integration

ROWS = 60
FEATURES = (
    Feature("x", DType.FLOAT32, nullable=True),
    Feature("y", DType.FLOAT32, nullable=True),
    Feature("kind", DType.STRING, nullable=True),
    Feature("visits", DType.INT64, default=0),
)
#: without a zone, in UTC; other clocks have some of them twice
NAIVE = [datetime.fromisoformat("2024-10-27T00:30") + timedelta(hours=row) for row in range(ROWS)]


def record_of(features: Sequence[Feature] = FEATURES) -> VersionRecord:
    inputs = tuple(TensorSpec(one.name, one.dtype) for one in features)
    signature = Signature(inputs, (TensorSpec("score", DType.FLOAT32),))
    return replace(record(), signature=signature, contract=FeatureContract(tuple(features)))


class Mixing(Doubling):
    """A model of numbers and text, in which each value counts, missing ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.record = record_of()

    def predict(self, inputs: Block) -> Block:
        self.rows += len(inputs["x"])
        number = np.nan_to_num(inputs["x"], nan=-7.0) + 10 * np.nan_to_num(inputs["y"], nan=-9.0)
        # 0 and -0 differ, as in 1 / x
        number = number + np.signbit(inputs["x"]) + inputs["visits"]
        return {"score": (number + [len(text or "none") for text in inputs["kind"]]).astype(np.float32)}


class Written(DeltaWorld):
    """A deployment whose table is written by the tests, column by column."""

    def __init__(self, client: Client, root: Path) -> None:
        super().__init__(client, root)
        self.model = Mixing()
        self.table.versions.activate(1)

    def inspect(self, settings: Settings, model: str) -> dict[int, VersionRecord]:
        return {1: self.model.record}

    def configure(self, **batch: Any) -> None:
        batch = {"rows_per_chunk": 25, "micro_batch_rows": 16, "max_in_flight": 9, "delta": True, "max_drift": 1e3}
        path = str(self.root / "t.parquet")
        model = ModelSettings(
            path=self.root / "model", features=path, event_time_column="at", batch=BatchSettings(**batch)
        )
        self.settings = Settings(models={"m": model})
        self.settings._root = self.root
        self.runs = self.make_runs()

    def put(self, table: pa.Table) -> None:
        pq.write_table(table, self.root / "t.parquet", row_group_size=20)

    def delta(self) -> RunView:
        """Publish a delta run, and a full one, which stores the same."""
        done = self.publish()
        stored = self.stored(done.generation)
        assert stored == self.stored(self.publish(delta=False).generation)
        return done


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> Written:
    world = Written(redis_client, tmp_path)
    world.put(a_table())
    world.publish()
    return world


def a_table(**columns: Any) -> pa.Table:
    rows = range(ROWS)
    return pa.table({
        "entity_id": [str(row) for row in rows],
        "x": pa.array([None if row % 9 == 0 else row / 8 for row in rows], pa.float32()),
        "y": pa.array([None if row % 7 == 0 else float(row) for row in rows], pa.float32()),
        "kind": pa.array([None if row % 5 == 0 else "ab"[row % 2] * (row % 3) for row in rows], pa.string()),
        "visits": pa.array([None if row == 3 else row for row in rows], pa.int32()),
        "at": pa.array(NAIVE, pa.timestamp("us")),
    } | columns)  # fmt: skip


def with_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def changed(table: pa.Table, name: str, **values: Any) -> pa.Table:
    """Replace values by the row's id."""
    column = table.column(name)
    cells = {f"r{row}": value for row, value in enumerate(column.to_pylist())} | values
    return with_column(table, name, pa.array(list(cells.values()), column.type))


def in_other_zone(table: pa.Table) -> pa.Table:
    zone = timezone(timedelta(hours=5, minutes=30))
    there = [moment.replace(tzinfo=UTC).astimezone(zone) for moment in NAIVE]
    return with_column(table, "at", pa.array(there, pa.timestamp("ns", "+05:30")))


def other_codes(table: pa.Table) -> pa.Table:
    """Categories with other codes for the same texts, among them one that no row has."""
    codes = {None: None, "zzz": 0, "bb": 1, "": 2, "b": 3, "aa": 4, "a": 5}
    indices = pa.array([codes[text] for text in table.column("kind").to_pylist()], pa.int8())
    return with_column(
        table, "kind", pa.DictionaryArray.from_arrays(indices, [key for key in codes if key is not None])
    )


SAME: dict[str, Callable[[pa.Table], pa.Table]] = {
    "as it was": lambda table: table,
    "columns in another order": lambda table: table.select(table.column_names[::-1]),
    "a column more": lambda table: table.append_column("note", pa.array(["new"] * ROWS)),
    "rows in another order": lambda table: table.take(list(range(ROWS))[::-1]),
    "float32 as float64": lambda table: with_column(table, "x", table.column("x").cast(pa.float64())),
    "int32 as int64": lambda table: with_column(table, "visits", table.column("visits").cast(pa.int64())),
    "large text": lambda table: with_column(table, "kind", table.column("kind").cast(pa.large_string())),
    "categories with other codes": other_codes,
    "instants of another zone": in_other_zone,
    "ids as numbers": lambda table: with_column(table, "entity_id", table.column("entity_id").cast(pa.int64())),
    "NaN in place of NULL": lambda table: with_column(table, "x", table.column("x").fill_null(float("nan"))),
    "a default in place of NULL": lambda table: changed(table, "visits", r3=0),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_values_in_another_form_are_no_changes(world: Written, case: str) -> None:
    before = world.stored(world.table.pointer().current)
    world.put(SAME[case](a_table()))
    done = world.publish()
    assert (done.full_reason, done.rows_carried, done.rows_rescored, done.rows_removed) == (None, ROWS, 0, 0)
    assert world.stored(done.generation) == before


CHANGES: dict[str, tuple[int, Callable[[pa.Table], pa.Table]]] = {
    "a NULL that moves to another column": (2, lambda table: changed(changed(table, "x", r9=1.0), "y", r10=None)),
    "a NULL that gets a value": (1, lambda table: changed(table, "x", r9=0.0)),
    "empty text in place of NULL": (1, lambda table: changed(table, "kind", r5="")),
    "two columns that swap their values": (1, lambda table: changed(changed(table, "x", r8=8.0), "y", r8=1.0)),
    "a zero below zero": (1, lambda table: changed(table, "x", r9=-0.0)),
    "the least change of a float": (1, lambda table: changed(table, "x", r8=float(np.nextafter(np.float32(1), 2)))),
    "one with the id of another": (2, lambda table: changed(table, "entity_id", r1="2", r2="1")),
    "a column of nothing but NULL": (
        ROWS - 9, lambda table: with_column(table, "y", pa.nulls(ROWS, pa.float32())),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_every_change_is_seen(world: Written, case: str) -> None:
    rows, change = CHANGES[case]
    world.put(change(a_table()))
    done = world.delta()
    assert (done.full_reason, done.rows_carried, done.rows_rescored) == (None, ROWS - rows, rows)


def test_rows_that_left_are_gone_and_the_last_one_too(world: Written) -> None:
    world.put(a_table().slice(0, ROWS - 3))
    done = world.delta()
    assert (done.full_reason, done.rows_carried, done.rows_removed) == (None, ROWS - 3, 3)
    assert world.table.read(["59"]) == [None]


REFUSED: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "an id twice": ("row repeats an entity id, such as '1'", lambda table: changed(table, "entity_id", r2="1")),
    "a column less": ("'y'", lambda table: table.drop_columns(["y"])),
    "integers as floats": (
        "cast it to int64",
        lambda table: with_column(table, "visits", table.column("visits").cast(pa.float64())),
    ),
    "numbers as text": ("'x'", lambda table: with_column(table, "x", table.column("x").cast(pa.string()))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_fails_in_one_line_and_what_serves_stays(world: Written, case: str) -> None:
    words, change = REFUSED[case]
    before = world.table.pointer()
    world.put(change(a_table()))
    done = world.finish(world.request(delta=True))
    assert done.state is RunState.FAILED
    assert words in (done.error or "")
    assert "\n" not in (done.error or "")
    assert world.table.pointer() == before
    world.put(a_table())
    assert world.publish().rows_carried == ROWS


def test_a_contract_that_changes_makes_a_full_run(world: Written) -> None:
    other = replace(record_of([*FEATURES[:3], replace(FEATURES[3], default=5)]), version=2)
    registry = ModelRegistry(world.client, KEYS)
    registry.put("m", other)
    registry.activate("m", 2)
    world.model.record = other
    world.model.vectoriser = Vectoriser(other.contract, other.signature)
    done = world.publish()
    assert "another feature contract" in (done.full_reason or "")
