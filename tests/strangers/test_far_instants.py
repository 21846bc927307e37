"""Event times that a table can hold and Python, or nanoseconds, cannot: each has one rule, wherever it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from inference.batch import RunState
from inference.clock import to_iso
from inference.errors import BadInput
from inference.features import EARLIEST_S, LATEST_S, Feature, event_times
from inference.onboarding.key_columns import guess_event_time, newest_times
from inference.redis.clients import Client
from inference.schema import DType
from inference.settings.model import BatchSettings
from inference.sources import open_source
from tests.integration.test_partial_runs import PartialWorld
from tests.support.any_table import AnyTable

NOW = datetime.now(UTC).replace(tzinfo=None)
INFINITY = 2**63 - 1


def us(*counts: int | None) -> pa.Array:
    return pa.array(counts, pa.int64()).cast(pa.timestamp("us"))


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        (us(INFINITY, -INFINITY, None), [LATEST_S, EARLIEST_S, np.nan]),
        (pa.array([2**62, -(2**62)], pa.int64()).cast(pa.timestamp("ms")), [LATEST_S, EARLIEST_S]),
        (pa.array([INFINITY, 0], pa.int64()).cast(pa.timestamp("s")), [LATEST_S, EARLIEST_S]),
        (pa.array([INFINITY, -5], pa.int64()).cast(pa.timestamp("ns")), [9223372036.854776, EARLIEST_S]),
        (pa.array([2**31 - 1, -(2**31), 1], pa.int32()).cast(pa.date32()), [LATEST_S, EARLIEST_S, 86400]),
        (
            us(1_700_000_000_123_456, 1_000_001).cast(pa.timestamp("us", "UTC")),
            [1_700_000_000.123456, 1.000001],
        ),
    ],
)
def test_no_instant_wraps_around(column: pa.Array, seconds: list[float]) -> None:
    np.testing.assert_array_equal(event_times(column), seconds)
    np.testing.assert_array_equal(event_times(column[1:]), seconds[1:])


TABLES = {
    "infinity in microseconds": us(int(NOW.replace(tzinfo=UTC).timestamp() * 1e6), INFINITY),
    "milliseconds beyond all years": pa.array([int(NOW.replace(tzinfo=UTC).timestamp() * 1e3), 2**62], pa.int64()).cast(
        pa.timestamp("ms")
    ),
    "year 9999": pa.array([NOW, datetime(9999, 12, 31)], pa.timestamp("us")),  # noqa: DTZ001
    "year 1": pa.array([NOW, datetime(1, 1, 1)], pa.timestamp("us")),  # noqa: DTZ001
    "date infinity": pa.array([(NOW - datetime(1970, 1, 1)).days, 2**31 - 1], pa.int32()).cast(pa.date32()),  # noqa: DTZ001
}


@pytest.mark.parametrize("name", TABLES)
def test_init_reads_such_a_column_and_takes_it(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"updated_at": TABLES[name]}), tmp_path / "t.parquet")
    newest = newest_times(open_source(str(tmp_path)), ["updated_at"])
    assert guess_event_time(["updated_at"], newest, datetime.now(UTC)).value == "updated_at"


@pytest.mark.parametrize("int96", [False, True])
def test_init_leaves_out_an_old_column_with_and_without_statistics(tmp_path: Path, int96: bool) -> None:
    old = pa.array([datetime(2017, 1, 1), None], pa.timestamp("us"))  # noqa: DTZ001
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"updated_at": old}), path, use_deprecated_int96_timestamps=int96)
    guess = guess_event_time(["updated_at"], newest_times(open_source(str(path)), ["updated_at"]), datetime.now(UTC))
    assert guess.value is None
    assert "2017-01-01" in guess.reason


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> PartialWorld:
    world = PartialWorld(redis_client, tmp_path)
    world.table.versions.activate(1)
    return world


def write(world: PartialWorld, at: pa.Array, **how: object) -> None:
    table = pa.table({"entity_id": ["a", "b"], "x": pa.array([1.0, 2.0], pa.float32()), "at": at})
    pq.write_table(table, world.root / "t.parquet", **how)


@pytest.mark.integration
def test_loaded_features_from_before_1970_are_there_and_so_are_those_of_the_future(
    redis_client: Client, tmp_path: Path
) -> None:
    world = AnyTable(redis_client, tmp_path, Feature("x", DType.FLOAT64))
    world.settings.models["m"] = world.settings.models["m"].model_copy(update={"event_time_column": "at"})
    world.write(id=["old", "zero", "far"], x=[1.0, 2.0, 3.0], at=us(-5, 0, INFINITY))
    world.load()
    assert [world.loaded(one) for one in ("old", "zero", "far")] == [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "int96"),
    [
        ("infinity in microseconds", False),
        ("milliseconds beyond all years", False),
        ("year 9999", False),
        ("year 9999", True),
    ],
)
def test_what_is_later_than_now_counts_as_now_in_runs_and_since(world: PartialWorld, name: str, int96: bool) -> None:
    write(world, TABLES[name], use_deprecated_int96_timestamps=int96)
    assert world.finish(world.request()).state is RunState.PUBLISHED
    times = [entry.as_of for entry in world.table.read(["a", "b"]) if entry]
    # the tables were made when this file was read, which may be minutes ago
    earliest, latest = NOW.replace(tzinfo=UTC).timestamp(), datetime.now(UTC).timestamp()
    assert len(times) == 2
    assert all(earliest - 2 < at < latest + 2 for at in times), times
    some = world.finish(world.request(since="6h"))
    assert (some.state, some.rows_done) == (RunState.PUBLISHED, 2)


@pytest.mark.integration
def test_what_is_before_1970_counts_as_its_first_second_and_is_not_since(world: PartialWorld) -> None:
    write(world, TABLES["year 1"])
    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert [entry.as_of for entry in world.table.read(["b"]) if entry] == [EARLIEST_S]
    some = world.finish(world.request(since="6h"))
    assert (some.state, some.rows_done) == (RunState.PUBLISHED, 1)


@pytest.mark.integration
@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "1955-01-01", "90000d"])
def test_since_a_time_before_1970_is_since_its_first_second_and_can_be_shown(world: PartialWorld, since: str) -> None:
    write(world, TABLES["year 1"])
    assert world.finish(world.request()).state is RunState.PUBLISHED
    done = world.finish(world.request(since=since))
    assert (done.state, done.rows_done) == (RunState.PUBLISHED, 2)
    assert done.to_json()["since"] == "1970-01-01T00:00:01.000Z"
    assert done.run_id in [view.to_json()["run_id"] for view in world.runs.list("m")]


@pytest.mark.integration
def test_no_duration_is_too_long_for_a_date(world: PartialWorld) -> None:
    with pytest.raises(BadInput, match=r"since '999999999d' is no instant: write .* or a duration such as 6h"):
        world.request(since="999999999d")
    with pytest.raises(ValidationError, match="'100001d' is too long: at most 100000d"):
        BatchSettings(keep="100001d")
    assert BatchSettings(keep="100000d").keep == 8_640_000_000


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (253_402_350_799.0, "9999-12-31T23:59:59.000Z"),
        (1e22, "9999-12-31T23:59:59."),
        (-62_135_596_800.0, "0001-01-01T00:00:00.000Z"),
        (-8.6e22, "0001-01-01T00:00:00."),
        (-0.001, "1969-12-31T23:59:59.999Z"),
        (1_769_828_400.0, "2026-01-31T03:00:00.000Z"),
    ],
)
def test_every_instant_has_a_text(instant: float, text: str) -> None:
    assert to_iso(instant).startswith(text)
