from __future__ import annotations

from inference.batch.plan import Chunk, Fingerprint, SourceFile, plan_chunks


def file(*row_groups: int, path: str = "a.parquet") -> SourceFile:
    return SourceFile(path, 100, "f00d", row_groups)


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


def test_a_chunk_survives_the_trip_through_json() -> None:
    for chunk in plan_chunks([file(3, 11), file(9)], rows_per_chunk=10):
        assert Chunk.from_json(chunk.number, chunk.to_json()) == chunk


def test_a_hundred_thousand_chunks_are_planned_without_reading_rows() -> None:
    assert len(plan_chunks([file(*[1_000_000] * 100_000)], rows_per_chunk=1_000_000)) == 100_000


def test_a_fingerprint_names_what_changed() -> None:
    planned = Fingerprint((("a", 1, "x"), ("b", 2, "y"), ("c", 3, "z")), "id", None, 4, "h", 10)
    now = Fingerprint((("a", 1, "x"), ("b", 2, "Y"), ("d", 1, "w")), "id", None, 5, "h", 10)

    assert planned.differences(planned.to_json()) == []
    assert now.differences(planned.to_json()) == [
        "c is gone",
        "d is new",
        "b was replaced",
        "model_version: 4 is now 5",
    ]
