"""Columns are looked up by their whole names, counted first; what is read costs a column the same in a wide table."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.doctor.findings import Finding
from app.cli.doctor.tables import open_table
from app.cli.features import _name_and_text
from app.cli.output import print_fields
from inference.batch import RunState
from inference.errors import BadInput, ContractError, SourceError
from inference.features import Feature, FeatureContract, Vectoriser
from inference.onboarding.key_columns import check_entity_column, entity_candidates, newest_times, read_first_rows
from inference.onboarding.matching import UserTable, match_columns
from inference.redis.clients import Client
from inference.schema import DType, Signature, TensorSpec
from inference.sources import find_column, flat_columns, open_source, read_slices, whole_slices
from tests.support.any_table import AnyTable

X = Feature("x", DType.FLOAT64)
NEW, OLD = datetime(2026, 11, 20, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)


def table(names: list[str], *columns: Any) -> pa.Table:
    return pa.Table.from_arrays([pa.array(column) for column in columns], names=names)


# --- names that occur several times ---


def with_event_time(world: AnyTable, column: str) -> AnyTable:
    world.settings.models["m"] = world.settings.models["m"].model_copy(update={"event_time_column": column})
    world.runs = world.make_runs()
    return world


REPEATED = {
    "ids": (table(["id", "id", "x"], ["a"], ["z"], [1.0]), "id"),
    "a feature": (table(["id", "x", "x"], ["a"], [1.0], [2.0]), "x"),
    "event times": (table(["id", "x", "at", "at"], ["a"], [1.0], [NEW], [NEW]), "at"),
    "ids of three types": (table(["id", "id", "id", "x"], ["a"], [1], [1.5], [1.0]), "id"),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_a_column_that_is_needed_and_there_twice_is_named_by_everybody(
    redis_client: Client, tmp_path: Path, kind: str
) -> None:
    rows, column = REPEATED[kind]
    world = AnyTable(redis_client, tmp_path, X)
    if column == "at":
        with_event_time(world, "at")
    path = world.write(table=rows)
    times = rows.schema.names.count(column)
    told = f"{path}: column {column!r} appears {times} times: rename one"

    done = world.run()
    assert (done.state, done.error) == (RunState.FAILED, told)
    with pytest.raises(SourceError) as caught:
        world.load()
    assert caught.value.message == told
    if column == "id":
        with pytest.raises(SourceError) as caught:
            world.ids_in(path)
        assert caught.value.message == told
    found = open_table(world.settings, "m", world.settings.models["m"])
    assert isinstance(found, Finding) == (column != "x")
    assert column not in entity_candidates(open_source(str(path)).schema)
    world.write(x=[1.0], id=["a"], at=[NEW])
    assert world.run().state is RunState.PUBLISHED  # the refused run blocks nothing


def test_names_that_only_look_alike_are_different_columns(redis_client: Client, tmp_path: Path) -> None:
    features = [Feature(name, DType.FLOAT64) for name in ("X", "x ", "x.y", "ns.x")]
    world = AnyTable(redis_client, tmp_path, *features)
    world.write(
        table=table(
            ["x", "X", "x ", "ns", "ns.x", "x.y", "id", "note", "note", "__index_level_0__", "__index_level_0__"],
            [100.0],
            [1.0],
            [2.0],
            [{"x": 1000.0, "y": 1000.0}],
            [4.0],
            [8.0],
            ["a"],
            [1],
            ["b"],
            [0],
            [0],
        )
    )

    assert world.run().state is RunState.PUBLISHED
    assert world.answers("a") == [15.0]
    world.load()
    assert world.loaded("a") == {"X": 1.0, "x ": 2.0, "x.y": 8.0, "ns.x": 4.0}


def test_a_struct_is_not_read_in_place_of_a_column_whose_name_is_its_path(tmp_path: Path) -> None:
    rows = {"a.b": [1], "a": [{"b": 2, "c": 3}], "a.c": ["x"]}
    pq.write_table(pa.table(rows), tmp_path / "t")
    source = open_source(str(tmp_path / "t"))

    for columns in (["a.b"], ["a.c", "a.b"], ["a"]):
        [batch] = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=10)
        assert batch.to_pydict() == {name: rows[name] for name in columns}


#: a column of event times beside a struct whose field has the same path or name
BESIDE: dict[str, dict[str, Any]] = {
    "the same path": {"updated": [{"at": OLD}] * 3, "updated.at": [NEW, NEW, OLD]},
    "the same path, later": {"updated.at": [NEW, NEW, OLD], "updated": [{"at": OLD}] * 3},
    "the same path, deeper": {"updated": [{"at": {"x": OLD}}] * 3, "updated.at": [NEW, NEW, OLD]},
    "the same name": {"old": [{"at": OLD}] * 3, "at": [NEW, NEW, OLD]},
    "lists of the same name": {"old": [[OLD]] * 3, "at": [NEW, NEW, OLD]},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_statistics_are_those_of_the_column_itself(redis_client: Client, tmp_path: Path, kind: str) -> None:
    columns = BESIDE[kind]
    column = "updated.at" if "updated.at" in columns else "at"
    world = with_event_time(AnyTable(redis_client, tmp_path, X), column)
    path = world.write("t/p.parquet", id=["a", "b", "c"], x=[1.0, 2.0, 3.0], **columns)

    metadata = pq.read_metadata(path)
    place = flat_columns(metadata)[column]
    assert metadata.row_group(0).column(place).statistics.max == NEW
    assert newest_times(open_source(str(path)), [column]) == {column: NEW}
    done = world.run(since="2026-11-01")
    assert (done.state, done.rows_done) == (RunState.PUBLISHED, 2)
    assert world.answers("a", "b", "c") == [1.0, 2.0, None]


def test_a_struct_has_no_statistics_of_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": [1], "a": [{"b": 1, "a": 2}], "l": [[1]]}), tmp_path / "t")
    metadata = pq.read_metadata(tmp_path / "t")

    assert flat_columns(metadata) == {"c": 0}


# --- names with any character ---

ODD = ["price (€)", "x:0", " x", "n" * 300, "a\tb", "a\nb", "=eq", "a=b", "\u202eltr", "a,b", "a/b", "'", '"', "ключ"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_is_read_stored_and_printed_on_one_line(
    redis_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    world = AnyTable(redis_client, tmp_path, Feature(name, DType.FLOAT64), entity_column=f"{name} id")
    world.write(table=table([f"{name} id", name], ["a"], [3.0]))

    assert world.run().state is RunState.PUBLISHED
    assert world.answers("a") == [3.0]
    world.load()
    assert world.loaded("a") == {name: 3.0}
    capsys.readouterr()
    print_fields(world.loaded("a"))
    [line] = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    contract = world.model.vectoriser.contract
    assert _name_and_text(f"{name}=9", contract) == (name, "9")
    assert _name_and_text(f"{name}==9", contract) == (name, "=9")
    with pytest.raises(ContractError) as caught:
        world.model.vectoriser.override_values({"quite another": 1})
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("a=b=9", ("a=b", "9")),
        ("a=9", ("a", "9")),
        ("a=bb=9", ("a", "bb=9")),
        ("=eq=9", ("=eq", "9")),
        ("other=1=2", ("other", "1=2")),
        ("=9", ("", "9")),
        ("a=b=", ("a=b", "")),
    ],
)
def test_a_value_belongs_to_the_longest_name_that_is_known(pair: str, expected: tuple[str, str]) -> None:
    contract = FeatureContract(tuple(Feature(name, DType.STRING) for name in ("a", "a=b", "=eq")))

    assert _name_and_text(pair, contract) == expected


def test_a_column_without_a_name_is_told_by_its_place(tmp_path: Path) -> None:
    pq.write_table(table(["x", "", "id"], [1.0], [2.0], ["a"]), tmp_path / "t")
    schema = open_source(str(tmp_path / "t")).schema

    with pytest.raises(SourceError, match=r"t: column 2 has no name: give it one"):
        find_column(schema, "", "t")
    assert entity_candidates(pa.schema([("", pa.string()), ("code", pa.string())])) == ["code"]
    one = Signature((TensorSpec("input", DType.FLOAT32, (1,)),), (TensorSpec("y", DType.FLOAT32),))
    assert match_columns(one, UserTable("t", schema, ["id"])).contract.names == ["x"]
    two = Signature((TensorSpec("input", DType.FLOAT32, (2,)),), (TensorSpec("y", DType.FLOAT32),))
    with pytest.raises(BadInput, match=r"it has only x; encode the others as in training: ''"):
        match_columns(two, UserTable("t", schema, ["id"]))


def test_a_missing_column_is_told_with_names_on_one_line() -> None:
    schema = pa.schema([("a\nb", pa.string()), ("", pa.string()), ("c", pa.string())])

    with pytest.raises(SourceError, match=r"t has no column 'zzz'; it has 'a\\nb', '', c$"):
        find_column(schema, "zzz", "t")


def test_an_id_column_that_differs_is_no_guess(tmp_path: Path) -> None:
    for number, value in enumerate(["a", 1.5]):
        pq.write_table(pa.table({"user_id": [value], "code": [f"c{number}"]}), tmp_path / f"{number}.parquet")
    source = open_source(str(tmp_path))

    assert entity_candidates(source.schema) == ["code"]
    assert check_entity_column(read_first_rows(source, ["code"]), "code") == "text, unique in all 2 rows"


# --- wide tables ---


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a file's schema was taken apart: each time costs all of its columns."""
    original, seen = pq.ParquetFile.schema_arrow, []

    def counted(self: Any) -> Any:
        seen.append(1)
        return original.fget(self)

    monkeypatch.setattr(pq.ParquetFile, "schema_arrow", property(counted))
    return seen


@pytest.mark.parametrize("row_groups", [1, 4])
def test_the_schema_is_taken_apart_once_a_file_however_many_columns_are_read(
    tmp_path: Path, parses: list[int], row_groups: int
) -> None:
    counts = []
    for width in (10, 300):
        names = [f"c{number}" for number in range(width)]
        rows = pa.table({"id": ["a", "b", "c", "d"], **{name: [1.0, 2.0, 3.0, 4.0] for name in names}})
        pq.write_table(rows, tmp_path / "t", row_group_size=4 // row_groups)
        contract = FeatureContract(tuple(Feature(name, DType.FLOAT32) for name in names))
        signature = Signature(tuple(feature.spec for feature in contract.features), (TensorSpec("y", DType.FLOAT32),))
        vectoriser = Vectoriser(contract, signature)
        parses.clear()

        source = open_source(str(tmp_path / "t"))
        vectoriser.check_schema(source.schema, "t")
        batches = list(
            read_slices(source.files, whole_slices(source.files), columns=["id", *vectoriser.columns], batch_rows=4)
        )

        assert sum(batch.num_rows for batch in batches) == 4
        counts.append(len(parses))
    assert counts == [2, 2]  # once to open it, once to read it
