"""Files of one table may differ in what means the same and in what nobody reads; else the line names the fix."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState
from inference.errors import SourceError
from inference.features import Feature
from inference.redis.clients import Client
from inference.schema import DType
from inference.sources import find_column, open_source, read_slices, whole_slices
from tests.support.any_table import AnyTable, text_value

CITY = Feature("city", DType.STRING, default="?")
CLICKS = Feature("clicks", DType.FLOAT64, default=-1.0)


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> AnyTable:
    return AnyTable(redis_client, tmp_path, CITY, CLICKS)


def frame(**columns: Any) -> pa.Table:
    """A day as pandas infers its types."""
    return pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)


GOOD = {"id": ["a", "b"], "city": ["Ulm", "Bonn"], "clicks": [1, 2]}
ANSWERS = [1.0 + text_value("Ulm"), 2.0 + text_value("Bonn")]
#: the files of two other days, each with the answers of c and d
OTHER_DAYS: dict[str, tuple[pa.Table, list[float | None]]] = {
    "all None, and a None among integers": (
        frame(id=["c", "d"], city=[None, None], clicks=[1, None]),
        [1.0 + text_value("?"), -1.0 + text_value("?")],
    ),
    "no rows and no types": (pa.table({"id": pa.nulls(0), "city": pa.nulls(0), "clicks": pa.nulls(0)}), [None, None]),
    "no rows and other columns": (pa.table({"note": pa.array([], pa.int8())}), [None, None]),
    "categories": (
        pa.table({"id": ["c", "d"], "city": pa.array(["Rom", "Ulm"]).dictionary_encode(), "clicks": [3, 4]}),
        [3.0 + text_value("Rom"), 4.0 + text_value("Ulm")],
    ),
    "views": (
        pa.table(
            {
                "id": pa.array(["c", "d"], pa.string_view()),
                "city": pa.array(["Rom", None], pa.string_view()),
                "clicks": pa.array([3, 4], pa.int32()),
            }
        ),
        [3.0 + text_value("Rom"), 4.0 + text_value("?")],
    ),
    "declared not null, in another order": (
        pa.table(
            [pa.array([3.0, 4.0]), pa.array(["Rom", "Ulm"]), pa.array(["c", "d"])],
            schema=pa.schema(
                [
                    pa.field("clicks", pa.float64(), nullable=False),
                    pa.field("city", pa.string(), nullable=False),
                    pa.field("id", pa.string(), nullable=False),
                ]
            ),
        ),
        [3.0 + text_value("Rom"), 4.0 + text_value("Ulm")],
    ),
    "decimals": (
        pa.table(
            {
                "id": ["c", "d"],
                "city": ["Rom", "Ulm"],
                "clicks": pa.array([3, 4], pa.int64()).cast(pa.decimal128(38, 0)),
            }
        ),
        [3.0 + text_value("Rom"), 4.0 + text_value("Ulm")],
    ),
    "a column that nobody reads": (
        pa.table({"id": ["c", "d"], "city": ["Rom", "Ulm"], "clicks": [3, 4], "note": pa.nulls(2)}),
        [3.0 + text_value("Rom"), 4.0 + text_value("Ulm")],
    ),
    "a column that nobody reads twice": (
        pa.Table.from_arrays(
            [pa.array(["c", "d"]), pa.array(["Rom", "Ulm"]), pa.array([3, 4]), pa.array([1, 1]), pa.array(["", ""])],
            names=["id", "city", "clicks", "note", "note"],
        ),
        [3.0 + text_value("Rom"), 4.0 + text_value("Ulm")],
    ),
}


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("kind", OTHER_DAYS)
def test_a_harmless_difference_is_none(world: AnyTable, kind: str, comes_first: bool) -> None:
    other, expected = OTHER_DAYS[kind]
    world.write("t/date=2026-11-27/p.parquet", frame(**GOOD))
    world.write(f"t/date=2026-11-{26 if comes_first else 28}/p.parquet", other)

    done = world.run()

    assert (done.state, done.error) == (RunState.PUBLISHED, None)
    assert world.answers("a", "b", "c", "d") == [*ANSWERS, *expected]
    assert world.load().rows == 2 + other.num_rows
    assert world.loaded("b") == {"city": "Bonn", "clicks": 2.0}


def test_rows_left_out_of_files_that_differ_stand_in_one_part(world: AnyTable) -> None:
    world.configure_quarantine(1)
    world.write("t/a.parquet", id=["a", ""], city=["Ulm", "Rom"], clicks=[1, 2])
    world.write("t/b.parquet", id=[None, "b"], city=pa.nulls(2), clicks=[0.5, 1.5])

    done = world.run()

    assert (done.state, done.rows_quarantined) == (RunState.PUBLISHED, 2)
    folder = world.root / ".forecache" / "quarantine" / done.run_id
    values = [row["values"] for path in folder.iterdir() for row in pq.read_table(path).to_pylist()]
    assert values == [{"id": "", "city": "Rom", "clicks": 2.0}, {"id": None, "city": None, "clicks": 0.5}]


def test_a_day_whose_ids_are_all_missing_leaves_out_its_rows(world: AnyTable) -> None:
    world.configure_quarantine(1)
    world.write("t/a.parquet", frame(**GOOD))
    world.write("t/b.parquet", id=pa.nulls(2), city=["Rom", "Ulm"], clicks=[3, 4])

    done = world.run()

    assert (done.state, done.rows_quarantined) == (RunState.PUBLISHED, 2)
    with pytest.raises(SourceError, match="2 rows have no legal id"):
        world.load()


#: a file beside `GOOD`, and the sentence that names what truly differs
DIFFERENCES = {
    "ids became numbers": (
        {**GOOD, "id": [1, 2]},
        "column 'id' is int64 in .*/b.parquet, but string in .*/a.parquet: write it with one type in all files, such as"
        ' CAST(id AS VARCHAR) in SQL, df["id"].astype("string") in pandas',
    ),
    "a number became text": (
        {**GOOD, "clicks": ["1", "2"]},
        "column 'clicks' is string in .*/b.parquet, but int64 in .*/a.parquet: write it with one type in all files, "
        'such as CAST(clicks AS BIGINT) in SQL, df["clicks"].astype("Int64") in pandas',
    ),
    "a feature is missing": (
        {"id": ["c"], "city": ["Rom"]},
        ".*/b.parquet has no column 'clicks', but .*/a.parquet has (int64): write all files",
    ),
    "a feature stands twice in one of them": (
        pa.Table.from_arrays([pa.array([one]) for one in ("c", "Rom", 1, 2)], names=["id", "city", "clicks", "clicks"]),
        ".*/b.parquet: column 'clicks' appears 2 times: rename one",
    ),
    "ids stand twice in one of them": (
        pa.Table.from_arrays([pa.array([one]) for one in ("c", "d", "Rom", 1)], names=["id", "id", "city", "clicks"]),
        ".*/b.parquet: column 'id' appears 2 times: rename one",
    ),
}


def as_pattern(sentence: str) -> str:
    return re.escape(sentence).replace(r"\.\*", ".*")


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_a_real_difference_is_one_sentence_and_what_serves_stays(world: AnyTable, kind: str, comes_first: bool) -> None:
    world.write("t/a.parquet", frame(**GOOD))
    assert world.run().state is RunState.PUBLISHED
    world.load()
    table, sentence = DIFFERENCES[kind]
    other = "t/b.parquet" if not comes_first else "t/0.parquet"
    world.write(other, table if isinstance(table, pa.Table) else pa.table(table))

    done = world.run()

    column = "id" if "'id'" in sentence else "clicks"
    assert done.state is RunState.FAILED
    assert f"{column!r}" in str(done.error)
    assert "rename one" in str(done.error) or "in all files" in str(done.error) or "write all files" in str(done.error)
    if not comes_first:
        assert re.search(as_pattern(sentence), str(done.error)), done.error
    with pytest.raises(SourceError, match=re.escape(str(done.error))):
        world.load()
    assert world.answers("a", "b") == ANSWERS
    assert world.loaded("a") == {"city": "Ulm", "clicks": 1.0}
    (world.root / other).unlink()
    assert world.run().state is RunState.PUBLISHED


def test_ids_that_became_doubles_on_one_day_are_told_with_both_files(world: AnyTable) -> None:
    world.write("t/a.parquet", frame(id=[1, 2], city=["x", "y"], clicks=[1, 2]))
    world.write("t/b.parquet", frame(id=[3, None], city=["x", "y"], clicks=[1, 2]))

    told = (
        r"entity column 'id' is double in .*/t/b\.parquet, but int64 in .*/t/a\.parquet: cast it to an integer or to "
        r"text, such as CAST\(id AS BIGINT\) in SQL, df\[\"id\"\]\.astype\(\"Int64\"\) in pandas"
    )
    assert re.search(told, str(world.run().error))
    with pytest.raises(SourceError, match=told):
        world.load()


@pytest.mark.parametrize("dtype", [DType.INT64, DType.INT32])
def test_an_integer_feature_that_became_double_is_told_with_both_files(
    redis_client: Client, tmp_path: Path, dtype: DType
) -> None:
    world = AnyTable(redis_client, tmp_path, Feature("n", dtype, default=0))
    world.write("t/a.parquet", frame(id=["a"], n=[1]))
    world.write("t/b.parquet", frame(id=["b", "c"], n=[2, None]))

    error = str(world.run().error)

    assert re.search(rf"'n' is double in .*b\.parquet, but int64 in .*a\.parquet, but the feature is {dtype}", error)


def test_only_the_column_that_is_looked_up_is_refused(world: AnyTable) -> None:
    for number, note in enumerate([["x"], [1], [True], [[1.0]]]):
        world.write(f"t/{number}.parquet", id=[str(number)], city=["x"], clicks=[1], note=note)
    schema = open_source(str(world.root / "t")).schema

    assert find_column(schema, "clicks", "t").type == pa.int64()
    with pytest.raises(SourceError, match=r"column 'note' is int64 in .*1\.parquet, but string in .*0\.parquet"):
        find_column(schema, "note", "t")
    assert world.run().state is RunState.PUBLISHED


def test_instants_of_other_units_are_one_column(redis_client: Client, tmp_path: Path) -> None:
    world = AnyTable(redis_client, tmp_path, CLICKS)
    own = world.settings.models["m"].model_copy(update={"event_time_column": "at"})
    world.settings.models["m"] = own
    world.runs = world.make_runs()
    at = pa.array([1_700_000_000], pa.timestamp("s"))
    for number, type_ in enumerate([pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ms")]):
        world.write(f"t/{number}.parquet", id=[str(number)], clicks=[number], at=at.cast(type_))

    assert world.run().state is RunState.PUBLISHED
    assert [entry.as_of for entry in world.table.read(["0", "1", "2"]) if entry] == [1_700_000_000.0] * 3
    assert world.load().rows == 3


# --- what a folder holds under other names ---

SUFFIXLESS = ["000000_0", "20261127_0123_abcde", "part-00001-5d6b.c000", "day=2/000000_0"]


@pytest.mark.parametrize("name", SUFFIXLESS)
def test_parquet_under_another_name_is_not_passed_over(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t/p.parquet" if "/" not in name else tmp_path / "t/day=1/p.parquet", ["a"])
    write(tmp_path / "t" / name, ["b"])

    with pytest.raises(SourceError, match=rf"t holds {name}, which is Parquet and not called so: rename it to"):
        open_source(str(tmp_path / "t"))
    pattern = f"{tmp_path}/t/{'**' if '/' in name else '*'}"
    assert open_source(pattern).rows == 2


def test_a_folder_of_nothing_else_is_told_the_pattern(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"t/00000{number}_0", [f"u{number}"])

    with pytest.raises(SourceError, match=r"t holds 000000_0, which is Parquet .*: give the pattern .*/t/\*, which"):
        open_source(str(tmp_path / "t"))
    assert open_source(str(tmp_path / "t/*")).rows == 3


def test_capitals_in_a_suffix_make_no_difference(tmp_path: Path) -> None:
    for number, name in enumerate(["a.parquet", "b.PARQUET", "c.Parq", "d.snappy.parquet"]):
        write(tmp_path / "t" / name, [f"u{number}"])

    assert open_source(str(tmp_path / "t")).rows == 4
    assert open_source(str(tmp_path / "*")).rows == 4


@pytest.mark.parametrize("name", ["a.parquet.bak", "old.bak", "b.parquet.tmp", ".hidden", "_staged", "x.inprogress"])
def test_what_somebody_set_aside_stays_out(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t/p.parquet", ["a"])
    write(tmp_path / "t" / name, ["b"])
    (tmp_path / "t/README").write_text("notes")
    (tmp_path / "t/empty").touch()

    assert open_source(str(tmp_path / "t")).rows == 1


def write(path: Path, ids: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "x": [1.0] * len(ids)}), path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of Git LFS"),
        (b"PARE" + bytes(40) + b"PARE", "it is encrypted, and no key is known here"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_told_so(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=told):
        open_source(str(tmp_path / "t.parquet"))


def text_of(*values: bytes) -> pa.Array:
    """A column of text with any bytes in it, as writers that do not look at them write it."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


@pytest.mark.parametrize("column", ["id", "city", "cities"])
def test_text_that_is_no_utf8_ends_runs_and_loads_in_one_sentence(
    redis_client: Client, tmp_path: Path, column: str
) -> None:
    world = AnyTable(redis_client, tmp_path, Feature("city", DType.STRING), Feature("cities", DType.STRING, (2,)))
    texts = {"id": [b"a", b"b"], "city": [b"Ulm", b"Bonn"], "cities": [b"A", b"B", b"C", b"D"]}
    texts[column][1] = "Köln".encode("latin-1")
    lists = pa.ListArray.from_arrays([0, 2, 4], text_of(*texts["cities"]))
    world.write(id=text_of(*texts["id"]), city=text_of(*texts["city"]), cities=lists)
    told = f"column '{column}' is text, and holds bytes that are no UTF-8"

    done = world.run()
    assert done.state is RunState.FAILED
    assert told in str(done.error)
    with pytest.raises(SourceError, match=told):
        world.load()


@pytest.mark.parametrize("spelling", [("true", "false"), ("True", "False")])
def test_folders_called_true_and_false_are_bools(tmp_path: Path, spelling: tuple[str, str]) -> None:
    for value in spelling:
        write(tmp_path / f"t/vip={value}/p.parquet", [value])
    source = open_source(str(tmp_path / "t"))
    assert source.schema.field("vip").type == pa.bool_()
    [one, two] = read_slices(source.files, whole_slices(source.files), columns=["id", "vip"], batch_rows=10)
    assert {row["id"].lower(): row["vip"] for batch in (one, two) for row in batch.to_pylist()} == {
        "true": True,
        "false": False,
    }
    as_text = open_source(str(tmp_path / "t"), as_text=["vip"])
    assert as_text.schema.field("vip").type == pa.large_string()


def test_a_file_without_any_event_time_is_no_trouble(world: AnyTable) -> None:
    world.settings.models["m"] = world.settings.models["m"].model_copy(update={"event_time_column": "at"})
    world.runs = world.make_runs()
    now = pa.array([pd.Timestamp.now("UTC")], pa.timestamp("us", "UTC"))
    world.write("t/1.parquet", id=["a"], city=["Ulm"], clicks=[1.0], at=now)
    world.write("t/2.parquet", id=["b"], city=["Bonn"], clicks=[2.0], at=pa.nulls(1))

    assert world.run().error is None
    assert world.answers("a", "b") == ANSWERS
    with pytest.raises(SourceError, match="1 row has no 'at', such as that of 'b'"):
        world.load()
    since = world.run(since="1h")
    assert (since.state, since.rows_done) == (RunState.PUBLISHED, 1)


def test_links_inside_a_folder_count_no_row_twice(tmp_path: Path) -> None:
    write(tmp_path / "t/day-1.parquet", ["a"])
    write(tmp_path / "t/day-2.parquet", ["b"])
    (tmp_path / "t/latest.parquet").symlink_to("day-2.parquet")
    (tmp_path / "t/again").symlink_to(tmp_path / "t")
    write(tmp_path / "elsewhere/day-3.parquet", ["c"])
    (tmp_path / "t/more").symlink_to(tmp_path / "elsewhere")

    for path in ("t", "t/**/*.parquet", "*"):
        found = [Path(file.path).name for file in open_source(str(tmp_path / path)).files]
        assert found == ["day-1.parquet", "day-2.parquet", "day-3.parquet"]
    assert open_source(str(tmp_path / "t/latest.parquet")).rows == 1


@pytest.mark.parametrize("target", ["nothing", "gone.parquet"])
def test_a_link_to_nothing_is_a_file_that_is_missing(tmp_path: Path, target: str) -> None:
    write(tmp_path / "t/p.parquet", ["a"])
    (tmp_path / "t/gone.parquet").symlink_to(target)

    for path in ("t", "t/*.parquet"):
        with pytest.raises(SourceError, match=r"t/gone\.parquet is a link to a file that is not there: fetch it"):
            open_source(str(tmp_path / path))


def test_a_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    write(tmp_path / "t/p.parquet", ["a"])
    (tmp_path / "t/p.parquet").rename(os.fsdecode(os.fsencode(tmp_path / "t") + b"/\xff.parquet"))

    with pytest.raises(SourceError, match="t holds a file whose name is no UTF-8: rename it"):
        open_source(str(tmp_path / "t"))


def test_whole_numbers_of_nineteen_digits_in_folder_names_are_exact(tmp_path: Path) -> None:
    stamps = [1_769_862_896_123_456_789, -(2**63), 2**63 - 1]
    for stamp in stamps:
        write(tmp_path / f"t/at={stamp}/p.parquet", [str(stamp)])
    source = open_source(str(tmp_path / "t"))
    assert source.schema.field("at").type == pa.int64()
    rows = read_slices(source.files, whole_slices(source.files), columns=["id", "at"], batch_rows=10)
    assert [int(row["id"]) == row["at"] for batch in rows for row in batch.to_pylist()] == [True] * 3
    write(tmp_path / f"t/at={2**63}/p.parquet", ["x"])
    assert open_source(str(tmp_path / "t")).schema.field("at").type == pa.float64()
