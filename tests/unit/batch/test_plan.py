from __future__ import annotations

import json
from typing import Any

from inference.batch.plan import cut_row_groups, file_differences, files_digest, gather
from inference.batch.records import Chunk, Fingerprint
from inference.batch.selection import RowSlice
from inference.sources import Slice, SourceFile, pack_mask

GIB = 1 << 30


def file(*row_groups: int, path: str = "a.parquet", bytes_per_row: int = 0) -> SourceFile:
    return SourceFile(path, 100, "s", "f00d", row_groups, tuple(rows * bytes_per_row for rows in row_groups))


def plan_chunks(files: list[SourceFile], *, rows_per_chunk: int = 10**9, bytes_per_chunk: int = GIB) -> list[Chunk]:
    limits = {"rows_per_chunk": rows_per_chunk, "bytes_per_chunk": bytes_per_chunk}
    return list(gather(cut_row_groups(files, **limits), **limits))


def covered(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return sorted(
        (part.file, part.row_group, row)
        for chunk in chunks
        for part in chunk.slices
        for row in range(part.offset, part.offset + part.length)
    )


def test_every_row_is_in_exactly_one_chunk() -> None:
    files = [file(3, 11, 0, 7), file(25), file(1, 1, 1)]
    expected = [
        (f, g, row) for f, own in enumerate(files) for g, rows in enumerate(own.row_groups) for row in range(rows)
    ]

    chunks = plan_chunks(files, rows_per_chunk=10)

    assert covered(chunks) == expected
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(0 < chunk.rows <= 10 for chunk in chunks)


def test_small_row_groups_share_a_chunk() -> None:
    assert [chunk.rows for chunk in plan_chunks([file(4, 4, 4), file(4)], rows_per_chunk=8)] == [8, 8]


def test_a_large_row_group_is_cut_into_equal_slices() -> None:
    assert [chunk.rows for chunk in plan_chunks([file(25)], rows_per_chunk=10)] == [8, 8, 9]


def test_wide_rows_make_smaller_chunks() -> None:
    wide = file(100, 3, 3, bytes_per_row=1000)

    chunks = plan_chunks([wide], bytes_per_chunk=40_000)

    assert [chunk.rows for chunk in chunks] == [33, 33, 40]
    assert covered(chunks) == covered(plan_chunks([wide]))


def test_a_chunk_is_filled_to_the_last_row_and_byte_and_no_further() -> None:
    pieces = [RowSlice(Slice(0, group, 0, 4), 4, 100) for group in range(4)]

    def rows(*, rows_per_chunk: int = 100, bytes_per_chunk: int = GIB) -> list[int]:
        return [one.rows for one in gather(pieces, rows_per_chunk=rows_per_chunk, bytes_per_chunk=bytes_per_chunk)]

    assert [rows(rows_per_chunk=most) for most in (7, 8, 11, 12)] == [[4] * 4, [8, 8], [8, 8], [12, 4]]
    assert [rows(bytes_per_chunk=most) for most in (199, 200, 299, 300)] == [[4] * 4, [8, 8], [8, 8], [12, 4]]


def test_a_row_larger_than_a_chunk_is_a_chunk_of_its_own() -> None:
    assert [chunk.rows for chunk in plan_chunks([file(3, bytes_per_row=5000)], bytes_per_chunk=1024)] == [1, 1, 1]


def test_a_chunk_survives_the_trip_through_json() -> None:
    for chunk in plan_chunks([file(3, 11), file(9)], rows_per_chunk=10):
        assert Chunk.from_json(chunk.number, json.dumps(chunk.to_json())) == chunk


def test_a_chunk_of_some_rows_survives_the_trip_through_json_and_knows_how_many() -> None:
    import numpy as np

    mask = pack_mask(np.arange(9) % 4 == 0)
    pieces = [RowSlice(Slice(0, 2, 9, 9, mask), 3, 10), RowSlice(Slice(0, 3, 0, 5), 5, 10)]

    (chunk,) = gather(pieces, rows_per_chunk=10, bytes_per_chunk=GIB)

    assert Chunk.from_json(0, json.dumps(chunk.to_json())) == chunk
    assert chunk.rows == 8


def test_a_long_plan_is_made_one_chunk_at_a_time() -> None:
    limits = {"rows_per_chunk": 1_000_000, "bytes_per_chunk": GIB}
    endless = gather(cut_row_groups([file(*[1_000_000] * 100_000)], **limits), **limits)

    assert next(iter(endless)).slices == (Slice(0, 0, 0, 1_000_000),)
    assert sum(1 for _ in endless) == 99_999


def changed(path: str, **facts: Any) -> SourceFile:
    return SourceFile(**{"path": path, "size": 1, "stamp": "s", "footer": "f", **facts})


def test_files_that_came_went_or_were_replaced_are_named() -> None:
    before = [changed("a"), changed("b"), changed("c"), changed("e")]
    now = [changed("a"), changed("b", stamp="t"), changed("d"), changed("e", footer="g")]

    assert file_differences(before, before) == []
    assert file_differences(before, now) == ["c is gone", "d is new", "b was replaced", "e was replaced"]
    assert files_digest(before) != files_digest(now)
    assert files_digest(before) == files_digest([SourceFile.from_json(json.dumps(one.to_json())) for one in before])


def test_of_many_changed_files_the_first_are_named_and_the_rest_counted() -> None:
    told = file_differences([changed(f"f{number}") for number in range(1007)], [])

    assert told[-2:] == ["f4 is gone", "and 1,002 files more"]


def test_a_fingerprint_names_what_changed() -> None:
    planned = Fingerprint("x", "id", None, 4, "h", 10, 20)
    now = Fingerprint("y", "id", None, 5, "h", 10, 30)

    assert planned.differences(planned) == []
    assert now.differences(planned) == ["model_version: 4 is now 5", "bytes_per_chunk: 20 is now 30"]
