"""Tables with many rows an entity: refused before anything is scored, or the newest row of each entity counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from inference.batch import RunState
from inference.errors import SourceError
from inference.features import Feature, key_columns
from inference.redis.clients import Client
from inference.schema import DType
from inference.settings import ModelSettings
from tests.support.any_table import AnyTable

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC).replace(microsecond=0)


def hours_ago(*ages: float | None) -> pa.Array:
    times = [None if age is None else NOW - timedelta(hours=age) for age in ages]
    return pa.array(times, pa.timestamp("us", "UTC"))


class History(AnyTable):
    """A model that answers `x` of the row that was read."""

    def __init__(self, client: Client, root: Path) -> None:
        super().__init__(client, root, Feature("x", DType.FLOAT64))
        self.change(rows="newest", event_time_column="at")

    def change(self, **own: Any) -> None:
        self.settings.models["m"] = self.settings.models["m"].model_copy(update=own)
        self.runs = self.make_runs()


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> History:
    return History(redis_client, tmp_path)


def write_days(world: History) -> None:
    """Three daily files: a has a row in each, b in the first, c in the last two; not in the order of time."""
    world.write("t/1.parquet", id=["a", "b", "c"], x=[3.0, 2.0, 9.0], at=hours_ago(1, 49, 2))
    world.write("t/2.parquet", id=["c", "a"], x=[8.0, 4.0], at=hours_ago(25, 30))
    world.write("t/3.parquet", id=["a"], x=[5.0], at=hours_ago(50))


def test_a_run_and_a_load_take_the_newest_row_of_each_entity(world: History) -> None:
    write_days(world)
    done = world.run()
    assert (done.state, done.error, done.rows_total, done.rows_done) == (RunState.PUBLISHED, None, 3, 3)
    assert world.answers("a", "b", "c") == [3.0, 2.0, 9.0]
    assert world.load().rows == 3
    assert [world.loaded(one)["x"] for one in ("a", "b", "c")] == [3.0, 2.0, 9.0]


def test_partial_runs_take_it_too(world: History) -> None:
    write_days(world)
    assert world.run().state is RunState.PUBLISHED
    world.write("t/4.parquet", id=["a", "a", "b"], x=[30.0, 31.0, 20.0], at=hours_ago(0.5, 0.2, 60))
    some = world.run(entities=["a", "b"])
    assert (some.state, some.rows_done) == (RunState.PUBLISHED, 2)
    assert world.answers("a", "b", "c") == [31.0, 2.0, 9.0]
    since = world.run(since="3h")
    assert (since.state, since.rows_done) == (RunState.PUBLISHED, 2)  # a and c


def test_equal_times_take_the_last_row_and_an_unknown_time_is_the_oldest(world: History) -> None:
    world.write("t/1.parquet", id=["a", "a", "b", "b", "n", "n"], x=[1.0, 2, 3, 4, 5, 6],
                at=hours_ago(5, 5, 5, None, None, None))  # fmt: skip
    world.write("t/2.parquet", id=["a"], x=[7.0], at=hours_ago(5))
    assert world.run().state is RunState.PUBLISHED
    assert world.answers("a", "b", "n") == [7.0, 3.0, 6.0]


def test_rows_are_found_across_chunks_row_groups_and_id_types(world: History) -> None:
    own = world.settings.models["m"]
    batch = own.batch.model_copy(update={"rows_per_chunk": 7})
    world.change(batch=batch)
    rows = 400
    ids = [n % 40 for n in range(rows)]
    table = pa.table(
        {"id": ids, "x": [float(n) for n in range(rows)], "at": hours_ago(*[(n * 7) % 400 for n in range(rows)])}
    )
    (world.root / "t").mkdir()
    pq.write_table(table, world.root / "t" / "p.parquet", row_group_size=33)
    done = world.run()
    assert (done.state, done.rows_done) == (RunState.PUBLISHED, 40)
    expected = [min((n for n in range(rows) if n % 40 == one), key=lambda n: (n * 7) % 400) for one in range(40)]
    assert world.answers(*map(str, range(40))) == [float(n) for n in expected]


def test_only_parquet_needs_no_recount(world: History) -> None:
    write_days(world)
    batch = world.settings.models["m"].batch.model_copy(update={"prediction_table": False, "parquet_path": "out"})
    world.change(batch=batch)
    done = world.run()
    assert (done.state, done.error, done.rows_done) == (RunState.PUBLISHED, None, 3)


def test_illegal_ids_are_told_of_as_in_any_table(world: History) -> None:
    world.write("t/1.parquet", id=["a", None, "a", "", None], x=[1.0, 2, 3, 4, 5], at=hours_ago(1, 1, 2, 1, 1))
    done = world.run()
    assert done.state is RunState.FAILED
    assert "3 of 4 rows cannot be scored" in (done.error or "")
    with pytest.raises(SourceError, match="3 rows have no legal id"):
        world.load()


def test_without_the_setting_nothing_is_scored_and_the_ways_out_are_named(world: History) -> None:
    world.change(rows="one")
    write_days(world)
    refused = world.run()
    assert (refused.state, refused.rows_total) == (RunState.FAILED, None)
    said = (
        "3 rows repeat an entity id, such as 'a', 'c', in the entity column 'id': keep one row per entity, or set rows "
    )
    assert (refused.error or "").startswith(said + '= "newest" and event_time_column')
    with pytest.raises(SourceError, match="3 rows repeat an entity id, such as 'a', 'c'"):
        world.load()
    assert world.client.keys("*:g:*") == []


def test_a_repeat_far_into_a_large_table_is_seen_at_planning(world: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_columns, "LOOKED_AT_ROWS", 30)
    world.change(rows="one")
    for day in range(12):
        world.write(f"t/{day:02}.parquet", id=[f"e{n}" for n in range(10)], x=[1.0] * 10, at=hours_ago(*[day] * 10))
    refused = world.run()
    assert (refused.state, refused.rows_total) == (RunState.FAILED, None)
    assert "20 rows repeat an entity id, such as 'e0', 'e1', 'e2'" in (refused.error or "")


def test_ids_that_are_missing_are_no_repeats(world: History) -> None:
    world.change(rows="one")
    world.configure_quarantine(1.0)
    world.write("t/1.parquet", id=["a", None, None, ""], x=[1.0, 2, 3, 4], at=hours_ago(1, 1, 1, 1))
    assert world.run().state is RunState.PUBLISHED


def test_a_run_is_not_taken_up_with_another_setting(world: History) -> None:
    write_days(world)
    run = world.request()
    world.runs.reconcile()
    world.runs.cancel(run.run_id)
    world.change(rows="one")
    assert "rows: 'newest' is now 'one'" in str(_refused(world, run.run_id))


def _refused(world: History, run_id: str) -> BaseException:
    with pytest.raises(Exception, match="is now") as raised:
        world.runs.resume(run_id)
    return raised.value


def test_the_newest_row_needs_a_column_that_dates_it() -> None:
    with pytest.raises(ValidationError, match='rows = "newest" needs event_time_column'):
        ModelSettings(path=Path("m"), rows="newest")


CLOSE_OR_FAR = {
    "nanoseconds apart": (pa.timestamp("ns"), 1_795_000_000_123_456_789, 1_795_000_000_123_456_788),
    "before 1970": (pa.timestamp("us"), -(10**15), -(10**15) - 1),
    "seconds before 1970": (pa.timestamp("s"), -5, -6),
    "days before 1970": (pa.date32(), -3, -4),
    "after the year 9999": (pa.timestamp("ms"), 2**61 + 1, 2**61),
    "a microsecond apart, long from now": (pa.timestamp("us"), 250_000_000_000_000_001, 250_000_000_000_000_000),
    "infinity and minus infinity": (pa.timestamp("us"), 2**63 - 1, -(2**63) + 1),
}


@pytest.mark.parametrize("kind", CLOSE_OR_FAR)
def test_the_newest_row_is_found_however_close_or_far_times_are(world: History, kind: str) -> None:
    type_, newer, older = CLOSE_OR_FAR[kind]
    numbers = pa.int32() if pa.types.is_date32(type_) else pa.int64()
    world.write(
        id=["a", "b", "a", "b"], x=[1.0, 2.0, 3.0, 4.0], at=pa.array([newer, older, older, newer], numbers).cast(type_)
    )
    assert world.run().state is RunState.PUBLISHED
    assert world.answers("a", "b") == [1.0, 4.0]
    world.load()
    assert [world.loaded(one)["x"] for one in "ab"] == [1.0, 4.0]
    assert world.run(entities=["a"]).state is RunState.PUBLISHED


def test_times_of_other_units_and_a_file_without_any_are_compared(world: History) -> None:
    at = 1_795_000_000
    world.write("t/1.parquet", id=["a", "b"], x=[1.0, 2.0], at=pa.array([at, at + 2]).cast(pa.timestamp("s")))
    world.write(
        "t/2.parquet",
        id=["a", "b"],
        x=[3.0, 4.0],
        at=pa.array([at * 10**9 + 1, at * 10**9]).cast(pa.timestamp("ns", "UTC")),
    )
    world.write("t/3.parquet", id=["a", "b"], x=[5.0, 6.0], at=pa.nulls(2))
    assert world.run().error is None
    assert world.answers("a", "b") == [3.0, 2.0]
