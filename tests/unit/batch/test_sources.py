from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch.plan import Slice, plan_chunks
from inference.batch.sources import (
    check_key_columns,
    count_distinct_ids,
    locate_source,
    open_source,
    read_slices,
)
from inference.errors import BadInput, SourceError
from inference.settings import ModelSettings, Settings
from tests.support.tables import write_wide


def write(path: Path, rows: int = 100, *, row_group_size: int = 30, **columns: Any) -> Path:
    table = pa.table({"entity_id": [f"e{i}" for i in range(rows)], "x": [float(i) for i in range(rows)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_a_folder_is_read_file_by_file_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", 10)
    write(tmp_path / "a" / "a.parquet", 40)
    write(tmp_path / "_temporary" / "c.parquet", 5)

    source = open_source(str(tmp_path))

    assert [file.row_groups for file in source.files] == [(30, 10), (10,)]
    assert source.rows == 50


@pytest.mark.parametrize("rows_per_chunk", [7, 30, 45, 1000])
def test_chunks_read_every_row_once_and_in_order(tmp_path: Path, rows_per_chunk: int) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    read = [
        value
        for chunk in plan_chunks(source.files, rows_per_chunk=rows_per_chunk)
        for batch in read_slices(source.files, chunk.slices, columns=["x"], batch_rows=8)
        for value in batch.column("x").to_pylist()
    ]

    assert read == [float(i) for i in range(100)]


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.parquet does not exist"):
        open_source(str(tmp_path / "none.parquet"))


def test_a_folder_without_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no \*\.parquet file"):
        open_source(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(SourceError, match=r"t\.parquet is not readable as Parquet"):
        open_source(str(path))


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no rows"):
        open_source(str(write(tmp_path / "t.parquet", 0)))


def test_files_with_other_columns_are_named_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 10)
    write(tmp_path / "b.parquet", 10, y=list(range(10)))

    with pytest.raises(SourceError, match=r"b\.parquet differs from .*a\.parquet in its columns: y: int64"):
        open_source(str(tmp_path))


def test_a_missing_entity_column_names_the_nearest(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match=r"has no column 'entity_ids' \(entity_column\): did you mean 'entity_id'"):
        check_key_columns(source, "entity_ids", None)


def test_float_ids_are_refused(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match="entity column 'x' is double"):
        check_key_columns(source, "x", None)


def test_an_event_time_must_be_a_time(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match="'x' is double"):
        check_key_columns(source, "entity_id", "x")


def test_a_file_that_was_replaced_since_the_plan_is_refused(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))
    write(tmp_path / "t.parquet", x=[float(i + 1) for i in range(100)])

    with pytest.raises(SourceError, match="was replaced while the run was reading it"):
        list(read_slices(source.files, [Slice(0, 0, 0, 5)], columns=["x"], batch_rows=8))


def test_repeated_ids_are_counted_and_named(tmp_path: Path) -> None:
    ids = [f"e{i}" for i in range(97)] + ["e5", "e5", "e80"]
    source = open_source(str(write(tmp_path / "t.parquet", entity_id=ids)))

    counted = count_distinct_ids(source.files, "entity_id", examples=5)

    assert counted.distinct == 97
    assert counted.duplicates == ("e5", "e80")


def test_integer_ids_are_counted_as_text(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet", entity_id=[*range(99), 7])))

    assert count_distinct_ids(source.files, "entity_id", examples=5).duplicates == ("7",)


def locate(root: Path, asked: str | None, *, confined: bool, features: str | None = "data/t.parquet") -> str:
    model = ModelSettings(path=root / "m", features=features)
    settings = Settings(models={"m": model})
    settings._root = root
    return locate_source(settings, "m", model, asked, confined=confined)


def test_a_run_reads_the_models_own_table_unless_another_is_named(tmp_path: Path) -> None:
    assert locate(tmp_path, None, confined=True) == str(tmp_path / "data/t.parquet")
    assert locate(tmp_path, "data/other.parquet", confined=True) == str(tmp_path / "data/other.parquet")
    assert locate(tmp_path, "/elsewhere/o.parquet", confined=False) == "/elsewhere/o.parquet"


@pytest.mark.parametrize("asked", ["/etc/passwd", "data/../secret.parquet", "other/t.parquet"])
def test_an_http_caller_cannot_read_outside_the_tables_folder(tmp_path: Path, asked: str) -> None:
    with pytest.raises(BadInput, match=r"lies outside the folder of models\.m\.features"):
        locate(tmp_path, asked, confined=True)


def test_a_link_does_not_lead_an_http_caller_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "way-out").symlink_to("/etc")

    with pytest.raises(BadInput, match="lies outside"):
        locate(tmp_path, "data/way-out/passwd", confined=True)


def test_a_model_without_a_table_has_no_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no table of features: set models\.m\.features"):
        locate(tmp_path, None, confined=False, features=None)


def test_a_source_elsewhere_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not on this machine"):
        locate(tmp_path, "s3://bucket/t.parquet", confined=False)


def test_a_table_of_a_million_columns_is_refused_before_its_footer_is_taken_apart(tmp_path: Path) -> None:
    write_wide(tmp_path / "few.parquet", 3)
    assert pq.ParquetFile(tmp_path / "few.parquet").metadata.num_columns == 3
    write_wide(tmp_path / "wide.parquet", 1_000_000)
    started = time.process_time()
    with pytest.raises(SourceError, match="over 200,000 columns or row groups"):
        open_source(str(tmp_path / "wide.parquet"))
    assert time.process_time() - started < 1
