"""The same tables in a folder and in a bucket: found, described, read and refused alike."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from inference.errors import BadInput, SourceError
from inference.sources import (
    SourceFile,
    count_distinct_ids,
    find_column,
    open_source,
    read_slices,
    whole_slices,
)
from tests.support.object_store import SECRET, Store, aws_environment, new_bucket, s3_server
from tests.support.waiting import LONG_S


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path), fs.LocalFileSystem(), str(tmp_path))
    return new_bucket(request.getfixturevalue("endpoint"))


def rows(first: int, count: int, **columns: Any) -> dict[str, Any]:
    numbers = range(first, first + count)
    return {"entity_id": [f"e{i}" for i in numbers], "x": [float(i) for i in numbers], **columns}


def names(store: Store, path: str) -> list[str]:
    return [file.path.removeprefix(f"{store.root}/") for file in open_source(store.uri(path)).files]


def read(store: Store, path: str, *columns: str, batch_rows: int = 7) -> list[tuple[Any, ...]]:
    source = open_source(store.uri(path))
    batches = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=batch_rows)
    return [tuple(row[column] for column in columns) for batch in batches for row in batch.to_pylist()]


# --- which files ---------------------------------------------------------------------------------------


def test_one_file_is_a_source(store: Store) -> None:
    store.write("t.parquet", rows(0, 50), row_group_size=20)

    source = open_source(store.uri("t.parquet"))

    assert (source.rows, [file.row_groups for file in source.files]) == (50, [(20, 20, 10)])
    assert read(store, "t.parquet", "entity_id", "x") == [(f"e{i}", float(i)) for i in range(50)]


def test_a_file_needs_no_suffix_when_it_is_named_itself(store: Store) -> None:
    store.write("000000_0", rows(0, 3))

    assert len(read(store, "000000_0", "x")) == 3


def test_a_folder_is_all_parquet_below_it_without_what_others_left_there(store: Store) -> None:
    for path in ("b.parquet", "a/z.parquet", "a/deep/y.snappy.parquet", "c.pq"):
        store.write(f"data/{path}", rows(0, 1))
    for path in ("_SUCCESS", ".b.parquet.crc", "b.parquet.crc", "notes.txt", "_SUCCESS.parquet", ".hidden.parquet"):
        store.put(f"data/{path}", b"no Parquet")
    for path in ("_temporary/0/x.parquet", ".staging/x.parquet", "_backup/1.parquet"):
        store.put(f"data/{path}", b"no Parquet")

    expected = ["data/a/deep/y.snappy.parquet", "data/a/z.parquet", "data/b.parquet", "data/c.pq"]
    assert names(store, "data") == expected
    assert names(store, "data/") == expected


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/*.parquet", ["data/a1.parquet", "data/a2.parquet", "data/b1.parquet"]),
        ("data/a?.parquet", ["data/a1.parquet", "data/a2.parquet"]),
        ("data/[!a]*.parquet", ["data/b1.parquet"]),
        ("data/[ab]1.parquet", ["data/a1.parquet", "data/b1.parquet"]),
        ("data/**/c.parquet", ["data/deep/er/c.parquet"]),
        ("data/**", ["data/a1.parquet", "data/a2.parquet", "data/b1.parquet", "data/deep/er/c.parquet"]),
        ("data/d*", ["data/deep/er/c.parquet"]),
        ("da*/a1.parquet", ["data/a1.parquet"]),
    ],
)
def test_a_pattern_is_what_it_matches_and_what_lies_in_folders_that_it_matches(
    store: Store, pattern: str, found: list[str]
) -> None:
    for path in ("a1.parquet", "a2.parquet", "b1.parquet", "deep/er/c.parquet"):
        store.write(f"data/{path}", rows(0, 1))
    store.put("data/_a3.parquet", b"no Parquet")

    assert names(store, pattern) == found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.parquet", r"nowhere\.parquet does not exist: give a Parquet file, a folder of them, or a pattern"),
        ("texts", r"texts holds no \*\.parquet file; it holds a\.csv and 1 more"),
        ("texts/*.parquet", r"texts/\*\.parquet matches no Parquet file; it holds a\.csv and 1 more"),
        ("nowhere/*.parquet", r"nowhere/\*\.parquet matches no Parquet file"),
    ],
)
def test_nothing_to_read_is_said_with_what_is_there(store: Store, path: str, message: str) -> None:
    store.put("texts/a.csv", b"1")
    store.put("texts/b.csv", b"1")

    with pytest.raises(SourceError, match=message):
        open_source(store.uri(path))


# --- partitions ----------------------------------------------------------------------------------------


def six(day: int) -> datetime:
    return datetime(2026, 1, day, 6, tzinfo=UTC).replace(tzinfo=None)


def test_partition_folders_are_columns_with_types_of_their_own(store: Store) -> None:
    for day, hour, share in (("2026-01-01", "00", "0.5"), ("2026-01-02", "13", "1")):
        store.write(f"data/date={day}/hour={hour}/share={share}/at={day} 06%3A00%3A00/p.parquet", rows(int(hour), 2))

    source = open_source(store.uri("data"))

    assert source.schema.names == ["entity_id", "x", "date", "hour", "share", "at"]
    types = [pa.date32(), pa.int64(), pa.float64(), pa.timestamp("us")]
    assert source.schema.types[2:] == types
    assert read(store, "data", "entity_id", "date", "hour", "share", "at") == [
        ("e0", date(2026, 1, 1), 0, 0.5, six(1)),
        ("e1", date(2026, 1, 1), 0, 0.5, six(1)),
        ("e13", date(2026, 1, 2), 13, 1.0, six(2)),
        ("e14", date(2026, 1, 2), 13, 1.0, six(2)),
    ]


def test_a_partition_column_may_be_all_that_is_read_and_may_be_null(store: Store) -> None:
    store.write("data/country=de/p.parquet", rows(0, 2))
    store.write("data/country=__HIVE_DEFAULT_PARTITION__/p.parquet", rows(2, 1))

    assert read(store, "data", "country") == [(None,), ("de",), ("de",)]


def test_texts_that_only_look_like_dates_stay_texts(store: Store) -> None:
    store.write("data/day=2026-02-31/p.parquet", rows(0, 1))

    assert read(store, "data", "day") == [("2026-02-31",)]


def test_one_partition_by_itself_still_has_its_column(store: Store) -> None:
    store.write("data/date=2026-01-01/p.parquet", rows(0, 1))
    store.write("data/date=2026-01-02/p.parquet", rows(1, 1))

    for path in ("data/date=2026-01-02", "data/date=2026-01-02/*.parquet", "data/date=*2/", "data/*2/p.parquet"):
        assert read(store, path, "x", "date") == [(1.0, date(2026, 1, 2))]


def test_a_column_that_is_in_the_file_too_is_the_files(store: Store) -> None:
    store.write("data/day=1/p.parquet", rows(0, 1, day=["1.0"]))

    assert read(store, "data", "day") == [("1.0",)]


@pytest.mark.parametrize("other", ["data/day=1/p.parquet", "data/date=1/hour=2/p.parquet", "data/p.parquet"])
def test_files_below_different_partition_columns_are_refused(store: Store, other: str) -> None:
    store.write("data/date=1/p.parquet", rows(0, 1))
    store.write(other, rows(1, 1))

    with pytest.raises(SourceError, match=r"lies below .*, but .* below .*: partition all files .* same columns"):
        open_source(store.uri("data"))


# --- bad files -----------------------------------------------------------------------------------------


def test_a_column_of_another_type_names_the_file_the_column_and_both_types(store: Store) -> None:
    store.write("data/a.parquet", rows(0, 1))
    store.write("data/b.parquet", rows(1, 1, x=["one"]))

    source = open_source(store.uri("data"))

    with pytest.raises(SourceError, match=r"column 'x' is string in .*data/b\.parquet, but double in .*/a\.parquet"):
        find_column(source.schema, "x", source.path)


@pytest.mark.parametrize(("more", "less"), [("a", "b"), ("b", "a")])
def test_a_column_that_a_file_lacks_is_named_with_both_files(store: Store, more: str, less: str) -> None:
    store.write(f"data/{less}.parquet", rows(0, 1))
    store.write(f"data/{more}.parquet", rows(1, 1, y=[1]))

    source = open_source(store.uri("data"))

    message = rf"data/{less}\.parquet has no column 'y', but .*data/{more}\.parquet has \(int64\)"
    with pytest.raises(SourceError, match=message):
        find_column(source.schema, "y", source.path)
    assert sorted(read(store, "data", "x")) == [(0.0,), (1.0,)]  # whoever does not read it is not concerned


def test_the_order_of_columns_is_no_difference(store: Store) -> None:
    store.write("data/a.parquet", {"entity_id": ["a"], "x": [1.0]})
    store.write("data/b.parquet", {"x": [2.0], "entity_id": ["b"]})

    assert read(store, "data", "entity_id", "x") == [("a", 1.0), ("b", 2.0)]


def test_empty_files_and_row_groups_are_read_over(store: Store) -> None:
    table = pa.table(rows(0, 5))
    store.write("data/a.parquet", table.slice(0, 0))
    store.write("data/b.parquet", table)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0)):
            writer.write_table(part)
    store.put("data/c.parquet", sink.getvalue().to_pybytes())

    assert [x for (x,) in read(store, "data", "x")] == [0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0]


def test_a_source_without_rows_is_refused(store: Store) -> None:
    store.write("data/a.parquet", rows(0, 0))

    with pytest.raises(SourceError, match="has no rows"):
        open_source(store.uri("data"))


@pytest.mark.parametrize("cut", [slice(None, -20), slice(None, 100), slice(0, 0), slice(30, None)])
def test_a_damaged_file_is_named(store: Store, cut: slice) -> None:
    store.write("data/a.parquet", rows(0, 1000))
    store.write("data/b.parquet", rows(0, 1000))
    store.put("data/b.parquet", store.get("data/b.parquet")[cut])

    with pytest.raises(SourceError, match=r"data/b\.parquet (is not readable as Parquet|cannot be read)"):
        read(store, "data", "entity_id", "x")


def test_repeated_ids_are_named_whichever_files_they_are_in(store: Store) -> None:
    store.write("data/a.parquet", rows(0, 100))
    store.write("data/b.parquet", rows(98, 10))
    files = open_source(store.uri("data")).files

    pauses: list[None] = []
    counted = count_distinct_ids(files, "entity_id", examples=5, give_way=lambda: pauses.append(None))

    assert (counted.distinct, counted.duplicates) == (108, ("e98", "e99"))
    assert len(pauses) >= len(files)


# --- a file that is not the planned one any more -------------------------------------------------------


def planned(store: Store, path: str) -> SourceFile:
    return SourceFile.from_json(json.dumps(open_source(store.uri(path)).files[0].to_json()))


def test_a_replaced_file_is_noticed_before_its_first_row(store: Store) -> None:
    store.write("t.parquet", rows(0, 10))
    files, parts = [planned(store, "t.parquet")], list(whole_slices(open_source(store.uri("t.parquet")).files))
    store.write("t.parquet", rows(0, 10, x=[1.0] * 10))

    with pytest.raises(SourceError, match=r"t\.parquet was replaced while the run was reading it: start a new run"):
        next(read_slices(files, parts, columns=["x"], batch_rows=5))


def test_a_file_replaced_by_one_of_the_same_size_and_footer_is_noticed(store: Store) -> None:
    store.write("t.parquet", rows(0, 10), write_statistics=False, use_dictionary=False, compression="none")
    before = planned(store, "t.parquet")
    time.sleep(0.01)  # a file system's clock may tick that slowly
    other = rows(0, 10, x=[float(i) for i in reversed(range(10))])
    store.write("t.parquet", other, write_statistics=False, use_dictionary=False, compression="none")
    after = planned(store, "t.parquet")

    assert (before.size, before.footer) == (after.size, after.footer)
    assert before.stamp != after.stamp


def test_a_file_replaced_while_it_is_read_is_noticed_at_its_end(store: Store) -> None:
    store.write("t.parquet", rows(0, 100))
    source = open_source(store.uri("t.parquet"))
    batches = read_slices(source.files, whole_slices(source.files), columns=["x"], batch_rows=10)
    next(batches)
    store.write("t.parquet", rows(0, 100, x=[1.0] * 100))

    with pytest.raises(SourceError, match="was replaced while the run was reading it"):
        list(batches)


def test_a_file_that_is_gone_is_named(store: Store) -> None:
    store.write("t.parquet", rows(0, 10))
    source = open_source(store.uri("t.parquet"))
    store.delete("t.parquet")

    with pytest.raises(SourceError, match=r"t\.parquet cannot be read any more"):
        list(read_slices(source.files, whole_slices(source.files), columns=["x"], batch_rows=10))


# --- stores that do not answer -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["t.parquet", "folder", "data/*.parquet"])
def test_a_bucket_that_does_not_exist_is_named(endpoint: str, path: str) -> None:
    with pytest.raises(SourceError, match=r"s3://no-such-bucket/.*(does not exist|NO_SUCH_BUCKET)"):
        open_source(f"s3://no-such-bucket/{path}")


def refused_soon(uri: str) -> str:
    started = time.monotonic()
    with pytest.raises(BadInput) as refused:
        open_source(uri)
    assert time.monotonic() - started < LONG_S
    message = refused.value.message
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_an_endpoint_that_refuses_is_an_error_at_once() -> None:
    with mock.patch.dict(os.environ, aws_environment("http://127.0.0.1:9")):
        message = refused_soon("s3://bucket-refused/t.parquet")

    assert message.startswith("s3://bucket-refused/t.parquet cannot be read: ")
    assert "Could not connect to server" in message


def test_an_endpoint_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.storage.SILENCE_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=lambda: _accept(silent), daemon=True).start()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with mock.patch.dict(os.environ, aws_environment(endpoint)):
            message = refused_soon("s3://bucket-silent/data")

    assert "Timeout was reached" in message


def _accept(server: socket.socket) -> None:
    held = []
    try:
        while True:
            held.append(server.accept())
    except OSError:
        pass  # the test is over


def test_hdfs_without_its_library_says_so() -> None:
    message = refused_soon("hdfs://namenode:8020/data/t.parquet")

    assert message.startswith("hdfs://namenode:8020 cannot be opened: ")
