from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from inference.batch import sinks
from inference.batch.paths import parquet_folder
from inference.batch.sinks import (
    CarriedRows,
    ParquetSink,
    Window,
    WindowBuilder,
    sweep_temporary_files,
    write_success,
)
from inference.errors import SettingsError, SourceError
from inference.schema import DType, TensorSpec
from inference.storage import Location

FIELDS = (TensorSpec("p", DType.FLOAT32), TensorSpec("v", DType.FLOAT32, (2,)), TensorSpec("t", DType.STRING))


def window(*names: str) -> Window:
    rows = len(names)
    block = {
        "p": np.arange(rows, dtype="<f4"),
        "v": np.ones((rows, 2), dtype="<f4"),
        "t": np.array([f"t-{name}" for name in names], dtype=object),
    }
    return Window(pa.array(names), block, np.full(rows, 1000.5))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_part_appears_only_when_its_chunk_is_whole(tmp_path: Path) -> None:
    sink = ParquetSink(str(tmp_path / "run"), FIELDS, chunk=3, token="t1")
    sink.write(window("a", "b"))
    sink.write(window("c"))
    assert visible(tmp_path / "run") == [".part-000003.t1.tmp"]

    sink.commit()
    sink.abandon()

    assert visible(tmp_path / "run") == ["part-000003.parquet"]
    table = pq.read_table(tmp_path / "run" / "part-000003.parquet")
    assert table.column("entity_id").to_pylist() == ["a", "b", "c"]
    assert table.column("v").to_pylist()[0] == [1.0, 1.0]
    assert table.column("t").to_pylist() == ["t-a", "t-b", "t-c"]
    assert table.schema.field("as_of").type == pa.timestamp("ms", "UTC")


@pytest.mark.parametrize(
    ("dtype", "arrow"),
    [(DType.INT64, "int64"), (DType.UINT8, "uint8"), (DType.BOOL, "bool"), (DType.FLOAT64, "double")],
)
def test_an_output_keeps_its_type_whatever_its_dimensions(tmp_path: Path, dtype: DType, arrow: str) -> None:
    fields = [TensorSpec("one", dtype), TensorSpec("two", dtype, (2,))]
    sink = ParquetSink(str(tmp_path), fields, chunk=0, token="t1")
    block = {"one": np.ones(3, dtype.numpy), "two": np.ones((3, 2), dtype.numpy)}
    sink.write(Window(pa.array(["a", "b", "c"]), block, np.full(3, 1000.5)))
    sink.commit()

    schema = pq.read_schema(tmp_path / "part-000000.parquet")
    assert str(schema.field("one").type) == arrow
    assert str(schema.field("two").type.value_type) == arrow


def test_outputs_that_are_called_like_a_column_of_every_part_have_names_of_their_own(tmp_path: Path) -> None:
    names = ["entity_id", "as_of", "output_entity_id", "p"]
    sink = ParquetSink(str(tmp_path), [TensorSpec(name, DType.FLOAT32) for name in names], chunk=0, token="t1")
    values = {name: np.full(1, number, "<f4") for number, name in enumerate(names)}
    sink.write(Window(pa.array(["a"]), values, np.full(1, 1000.5)))
    sink.commit()

    [row] = pq.read_table(tmp_path / "part-000000.parquet").to_pylist()
    del row["as_of"]
    assert row == {
        "entity_id": "a", "output_output_entity_id": 0.0, "output_as_of": 1.0, "output_entity_id": 2.0, "p": 3.0,
    }  # fmt: skip


def test_an_abandoned_chunk_leaves_nothing(tmp_path: Path) -> None:
    sink = ParquetSink(str(tmp_path), FIELDS, chunk=0, token="t1")
    sink.write(window("a"))

    sink.abandon()

    assert visible(tmp_path) == []


def test_a_chunk_that_fails_at_its_first_byte_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    sink = ParquetSink(str(tmp_path), FIELDS, chunk=0, token="t1")
    monkeypatch.setattr(pq, "ParquetWriter", full_disk)
    with pytest.raises(OSError, match="No space"):
        sink.write(window("a"))

    sink.abandon()

    assert visible(tmp_path) == []


def test_a_chunk_that_ran_twice_is_one_part(tmp_path: Path) -> None:
    for token in ("t1", "t2"):
        sink = ParquetSink(str(tmp_path), FIELDS, chunk=0, token=token)
        sink.write(window("a"))
        sink.commit()

    assert visible(tmp_path) == ["part-000000.parquet"]


def test_what_a_killed_worker_left_is_swept_and_success_is_written_in_one_step(tmp_path: Path) -> None:
    ParquetSink(str(tmp_path), FIELDS, chunk=0, token="dead").write(window("a"))

    sweep_temporary_files(tmp_path)
    write_success(str(tmp_path), {"rows_total": 1})

    assert visible(tmp_path) == ["_SUCCESS"]
    assert json.loads((tmp_path / "_SUCCESS").read_text()) == {"rows_total": 1, "parts": 0, "schema": []}


def test_runs_of_one_day_never_share_a_folder() -> None:
    filled = {"model": "m", "run_id": "m-1", "created_at": 0.0}

    assert parquet_folder("out/{date}/{run_id}", **filled) == "out/1970-01-01/m-1"  # type: ignore[arg-type]
    assert parquet_folder("out/{model}/", **filled) == "out/m/m-1"  # type: ignore[arg-type]


def test_an_unknown_placeholder_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"only \{date\}, \{model\}, \{run_id\} are filled in"):
        parquet_folder("out/{day}", model="m", run_id="r", created_at=0.0)


def carried(names: list[str], places: list[tuple[int, int]]) -> CarriedRows:
    numbers = np.array([part << 32 | row for part, row in places], np.uint64)
    as_of, nothing = np.full(len(names), 2000.25), np.zeros(len(names), np.uint64)
    return CarriedRows(pa.array(names), as_of, nothing, np.zeros(len(names), np.bool_), numbers)


def test_carried_rows_come_from_the_earlier_parts_in_the_order_of_the_table_with_their_new_ages(tmp_path: Path) -> None:
    for chunk, windows in ((0, [("a", "b"), ("c", "d", "e")]), (7, [("f",)])):
        earlier = ParquetSink(str(tmp_path / "old"), FIELDS, chunk=chunk, token="t")
        for names in windows:
            earlier.write(window(*names))
        earlier.commit()
    before = {row["entity_id"]: row for row in pq.read_table(tmp_path / "old").to_pylist()}

    sink = ParquetSink(str(tmp_path / "new"), FIELDS, chunk=1, token="t", earlier=str(tmp_path / "old"))
    order = ["f", "e", "a", "c"]
    sample = sink.carry(carried(order, [(7, 0), (0, 4), (0, 0), (0, 2)]))
    sink.write(window("new"))
    sink.commit()

    rows = pq.read_table(tmp_path / "new").to_pylist()
    assert [row["entity_id"] for row in rows] == [*order, "new"]
    assert [row["as_of"].timestamp() for row in rows] == [2000.25] * 4 + [1000.5]
    assert [{**row, "as_of": 0} for row in rows[:4]] == [{**before[name], "as_of": 0} for name in order]
    assert {name: values.tolist() for name, values in sample.items()} == {"p": [0.0, 2.0, 0.0, 0.0], "v": [1.0] * 8}


@pytest.mark.parametrize(
    ("names", "places"),
    [(["b", "a"], [(0, 0), (0, 1)]), (["a"], [(0, 9)]), (["a"], [(3, 0)])],
    ids=["other rows", "too few rows", "no such part"],
)
def test_parts_that_are_not_those_of_the_earlier_run_are_refused(
    tmp_path: Path, names: list[str], places: list[tuple[int, int]]
) -> None:
    earlier = ParquetSink(str(tmp_path / "old"), FIELDS, chunk=0, token="t")
    earlier.write(window("a", "b"))
    earlier.commit()
    sink = ParquetSink(str(tmp_path / "new"), FIELDS, chunk=0, token="t", earlier=str(tmp_path / "old"))
    with pytest.raises(SourceError, match="are not those of the run whose rows are carried over: start a new run"):
        sink.carry(carried(names, places))


# --- an object store, which has no files that are half written ---


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a bucket `b`."""
    (tmp_path / "b").mkdir()
    location = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "b", "s3://")
    monkeypatch.setattr("inference.batch.sinks.open_location", lambda folder: location)
    return tmp_path / "b"


def test_a_part_in_an_object_store_is_sent_whole_and_an_abandoned_one_never(store: Path) -> None:
    for chunk, names in ((1, ("a", "b")), (0, ("c",))):
        sink = ParquetSink("s3://b", FIELDS, chunk=chunk, token="t")
        for name in names:
            sink.write(window(name))
        assert f"part-{chunk:06d}.parquet" not in visible(store)
        sink.commit()
        sink.commit()  # nothing is left to do
    left = ParquetSink("s3://b", FIELDS, chunk=2, token="t")
    left.write(window("d"))
    left.abandon()
    assert visible(store) == ["part-000000.parquet", "part-000001.parquet"]
    assert pq.read_table(store / "part-000001.parquet").column("entity_id").to_pylist() == ["a", "b"]
    write_success("s3://b", {"run_id": "r"})
    told = json.loads((store / "_SUCCESS").read_text())
    assert (told["run_id"], told["parts"]) == ("r", 2)
    assert [one["name"] for one in told["schema"]] == ["entity_id", "p", "v", "t", "as_of"]


def test_success_without_parts_says_so(store: Path) -> None:
    write_success("s3://b", {})
    assert json.loads((store / "_SUCCESS").read_text()) == {"parts": 0, "schema": []}


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 8)
    monkeypatch.setattr(sinks, "WINDOW_BYTES", 1024)


def part(start: int, rows: int, *, width: int = 1, features: bool = False) -> Window:
    ids = pa.array([f"e{n}" for n in range(start, start + rows)], pa.string())
    y = np.repeat(np.arange(start, start + rows, dtype=np.float32)[:, None], width, axis=1)
    return Window(ids, {"y": y}, np.arange(start, start + rows, dtype=np.float64), {"x": y + 100} if features else None)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("rows", "width", "worth", "full"),
    [
        (1, 1, False, False),
        (2, 1, True, False),  # a fourth of the rows
        (7, 1, True, False),
        (8, 1, True, True),
        (1, 63, False, False),
        (1, 64, True, False),  # a fourth of the bytes
        (1, 255, True, False),
        (1, 256, True, True),
    ],
)
def test_a_window_is_full_by_rows_or_bytes_and_worth_writing_from_a_fourth_of_either(
    rows: int, width: int, worth: bool, full: bool
) -> None:
    builder = WindowBuilder()
    builder.add(part(0, rows, width=width))
    assert (builder.is_worth_writing, builder.is_full, builder.rows) == (worth, full, rows)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("features", [False, True])
def test_parts_are_taken_as_one_in_their_order_and_the_next_window_starts_empty(features: bool) -> None:
    builder = WindowBuilder()
    for start, rows in ((0, 3), (3, 0), (3, 1), (4, 2)):
        builder.add(part(start, rows, features=features))
    window = builder.take()
    assert window.ids.to_pylist() == [f"e{n}" for n in range(6)]
    assert window.as_of.tolist() == window.block["y"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (window.features is None) is not features
    if window.features is not None:
        assert window.features["x"][:, 0].tolist() == [100, 101, 102, 103, 104, 105]
    assert (builder.rows, builder.is_worth_writing, builder.is_full) == (0, False, False)
    builder.add(part(9, 1, width=63, features=features))
    assert builder.take().ids.to_pylist() == ["e9"]


@pytest.mark.usefixtures("small_windows")
def test_rows_of_different_shapes_become_a_column_of_arrays() -> None:
    builder = WindowBuilder()
    builder.add(part(0, 2, width=2))
    builder.add(part(2, 1, width=3))
    column = builder.take().block["y"]
    assert (column.dtype, [row.tolist() for row in column]) == (np.dtype(object), [[0, 0], [1, 1], [2, 2, 2]])
