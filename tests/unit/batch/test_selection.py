"""Which rows a partial run scores: as they are requested, and over tables whose footers say much, little or nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch.plan import cut_row_groups
from inference.batch.selection import (
    Selected,
    Selection,
    check_entities,
    pack_entities,
    parse_since,
    read_entities,
    select_rows,
    unpack_entities,
)
from inference.errors import BadInput, SourceError
from inference.sources import open_source, read_ids

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_S = NOON.timestamp()


def write(path: Path, rows: list[tuple[str, int | None]], **how: Any) -> None:
    """Write rows of an id and the minutes after noon at which it changed (None: nobody knows), three a row group."""
    at = [None if minutes is None else NOON + timedelta(minutes=minutes) for _, minutes in rows]
    table = pa.table({"id": [entity_id for entity_id, _ in rows], "at": pa.array(at, pa.timestamp("us", "UTC"))})
    pq.write_table(table, path, **{"row_group_size": 3, **how})


def select(path: Path, *, minutes: float | None = None, entities: tuple[str, ...] | None = None, rows_per_chunk: int = 100) -> tuple[Selected, list[str]]:  # fmt: skip  # noqa: E501
    """Return what was selected, and its ids in order."""
    source = open_source(str(path), keep_metadata=True)
    pieces = cut_row_groups(source.files, rows_per_chunk=rows_per_chunk, bytes_per_chunk=1 << 30)
    since = None if minutes is None else (NOON + timedelta(minutes=minutes)).timestamp()
    found = select_rows(source, pieces, Selection(entities, since), entity_column="id", event_time_column="at")
    slices = [piece.slice for piece in found.pieces]
    return found, [one for part in read_ids(source.files, slices, "id") for one in part.to_pylist()]


ROWS = [("a", 0), ("b", 10), ("c", 20), ("d", 30), ("e", 40), ("f", 50), ("g", None), ("h", 20)]


@pytest.mark.parametrize("how", [{}, {"write_statistics": False}, {"write_statistics": ["id"]}])
@pytest.mark.parametrize(
    ("minutes", "ids"),
    [
        (20, "cdefh"),  # the instant itself is meant
        (20.001, "def"),
        (50, "f"),  # the newest of its row group
        (50.001, ""),
        (-60, "abcdefh"),  # a row whose time nobody knows is never newer
    ],
)
def test_rows_since_an_instant_are_found_with_and_without_statistics(
    tmp_path: Path, how: dict[str, Any], minutes: float, ids: str
) -> None:
    write(tmp_path / "t.parquet", ROWS, **how)

    found, selected = select(tmp_path / "t.parquet", minutes=minutes)

    assert selected == list(ids)
    assert found.rows == len(ids)
    assert (found.missing, found.missing_examples) == (0, ())


def test_files_with_and_without_statistics_may_lie_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", [("a", 0), ("b", 60)])
    write(tmp_path / "2.parquet", [("c", 0), ("d", 60)], write_statistics=False)
    write(tmp_path / "3.parquet", [("e", 0), ("f", 1)])
    write(tmp_path / "4.parquet", [("g", None), ("h", None), ("i", None), ("j", 60)])

    assert select(tmp_path, minutes=30)[1] == ["b", "d", "j"]


@pytest.mark.parametrize(("day", "ids"), [(date(2026, 1, 1), ["c", "d"]), (date(2026, 1, 2), ["c", "d"]), (date(2026, 1, 3), [])])  # fmt: skip  # noqa: E501
def test_a_partition_may_be_the_event_time(tmp_path: Path, day: date, ids: list[str]) -> None:
    for number, names in ((31, ["a", "b"]), (2, ["c", "d"])):
        folder = tmp_path / ("at=2025-12-31" if number == 31 else "at=2026-01-02")
        folder.mkdir()
        pq.write_table(pa.table({"id": names}), folder / "t.parquet")
    source = open_source(str(tmp_path), keep_metadata=True)
    pieces = cut_row_groups(source.files, rows_per_chunk=9, bytes_per_chunk=1 << 30)
    since = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    found = select_rows(source, pieces, Selection(None, since), entity_column="id", event_time_column="at")
    slices = [piece.slice for piece in found.pieces]

    assert [one for part in read_ids(source.files, slices, "id") for one in part.to_pylist()] == ids


def test_files_and_row_groups_in_which_nothing_is_new_enough_are_not_read(tmp_path: Path) -> None:
    for day in ("2025-12-31", "2026-01-02"):
        (tmp_path / f"at={day}").mkdir()
        pq.write_table(pa.table({"id": [day]}), tmp_path / f"at={day}" / "t.parquet")
    source = open_source(str(tmp_path), keep_metadata=True)
    pieces = list(cut_row_groups(source.files, rows_per_chunk=9, bytes_per_chunk=1 << 30))
    (tmp_path / "at=2025-12-31" / "t.parquet").unlink()

    def ids(since: datetime) -> list[str]:
        selection = Selection(None, since.timestamp())
        found = select_rows(source, iter(pieces), selection, entity_column="id", event_time_column="at")
        slices = [piece.slice for piece in found.pieces]
        return [one for part in read_ids(source.files, slices, "id") for one in part.to_pylist()]

    assert ids(NOON) == ["2026-01-02"]
    with pytest.raises(SourceError):
        ids(NOON - timedelta(days=7))


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 100])
def test_some_entities_are_found_wherever_they_are_and_the_others_counted(tmp_path: Path, rows_per_chunk: int) -> None:
    write(tmp_path / "t.parquet", ROWS)
    asked = ("h", "nobody", "a", "f", "who", "x1", "x2", "x3", "x4")

    found, selected = select(tmp_path / "t.parquet", entities=asked, rows_per_chunk=rows_per_chunk)

    assert selected == ["a", "f", "h"]
    assert (found.rows, found.missing) == (3, 6)
    assert found.missing_examples == ("nobody", "who", "x1", "x2", "x3")


def test_a_row_must_meet_both_and_one_that_is_too_old_is_not_missing(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", ROWS, write_statistics=False)

    found, selected = select(tmp_path / "t.parquet", minutes=20, entities=("b", "c", "zz", "g"))

    assert selected == ["c"]
    assert (found.missing, found.missing_examples) == (1, ("zz",))


def test_only_rows_that_are_meant_must_have_ids_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [("a", 0), ("b", 5), ("a", 40), ("c", 41), ("c", 1)])
    assert select(tmp_path / "t.parquet", minutes=40)[1] == ["a", "c"]

    with pytest.raises(SourceError, match="1 row repeats an entity id, such as 'a'") as refused:
        select(tmp_path / "t.parquet", entities=("a", "b"))
    assert refused.value.field == "id"


def test_the_bytes_of_a_piece_are_those_of_the_rows_that_are_meant(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", ROWS[:3])
    [whole] = cut_row_groups(open_source(str(tmp_path)).files, rows_per_chunk=9, bytes_per_chunk=1 << 30)

    [part] = select(tmp_path, entities=("b",))[0].pieces
    [all_of_it] = select(tmp_path, entities=("a", "b", "c"))[0].pieces

    assert (part.rows, part.bytes) == (1, whole.bytes // 3)
    assert (all_of_it.rows, all_of_it.bytes, all_of_it.slice.mask) == (3, whole.bytes, None)


def test_a_text_file_has_an_id_a_line_and_spaces_belong_to_it(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffa\r\n\r\n b c \u2028d\né".encode())

    assert read_entities(str(path), "entity_id") == ["a", " b c \u2028d", "é"]


@pytest.mark.parametrize("ids", [[1, 20, 3], ["1", "20", "3"]])
def test_a_parquet_file_has_them_in_the_entity_column(tmp_path: Path, ids: list[Any]) -> None:
    pq.write_table(pa.table({"x": [0, 0, 0], "user": ids}), tmp_path / "ids")

    assert read_entities(str(tmp_path / "ids"), "user") == ["1", "20", "3"]


def test_a_parquet_file_without_the_entity_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"users": ["a"]}), tmp_path / "ids")

    with pytest.raises(BadInput, match=r"has no column 'user' .* did you mean 'users'"):
        read_entities(str(tmp_path / "ids"), "user")


@pytest.mark.parametrize(
    ("data", "message"), [(b"\n", "holds no ids: write one a line"), (b"\xff\xfe", "cannot be read as a list of ids")]
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "ids").write_bytes(data)

    with pytest.raises(BadInput, match=message):
        read_entities(str(tmp_path / "ids"), "user")


def test_ids_are_taken_once_each_and_survive_their_trip() -> None:
    ids = check_entities(["b", "a", "b", " ", "😀"])

    assert ids == ("b", "a", " ", "😀")
    assert unpack_entities(pack_entities(ids)) == ids


def test_too_many_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batch.selection.MAX_ENTITIES", 2)

    with pytest.raises(BadInput, match="entities holds 3: at most 2"):
        check_entities(["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "hours_before_noon"),
    [
        ("6h", 6),
        ("30m", 0.5),
        ("2026-01-01", 12),
        ("2026-01-01T06:00", 6),
        ("2026-01-01T06:00:00Z", 6),
        ("2026-01-01 07:00:00+01:00", 6),
    ],
)
def test_since_is_an_instant_or_a_duration(text: str, hours_before_noon: float) -> None:
    assert parse_since(text, now=NOON_S) == NOON_S - hours_before_noon * 3600
