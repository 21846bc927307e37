"""An id is the text that the user would write; what cannot be one is refused by everybody in the same sentence."""

from __future__ import annotations

import re
import uuid
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.doctor.findings import Finding
from app.cli.doctor.tables import open_table
from app.cli.init import Asker, Options
from app.cli.onboarding import Onboarding
from inference.batch import RunState
from inference.entities import check_entity_column_type, entity_ids_as_text
from inference.errors import SourceError
from inference.features import Feature
from inference.models.warm_up import SampleRows
from inference.onboarding.key_columns import entity_candidates, guess_entity_column, read_first_rows, unfit_id_columns
from inference.redis.clients import Client
from inference.schema import DType
from inference.sources import open_source
from tests.support.any_table import AnyTable

X = Feature("x", DType.FLOAT64)
UUIDS = [uuid.UUID(int=0), uuid.UUID("8f14e45f-ceea-467f-a8e0-9d1f0a3b5c7d"), uuid.UUID(int=2**128 - 1)]


def decimals(type_: pa.DataType, numbers: list[int]) -> pa.Array:
    return pa.array([Decimal(n) for n in numbers], pa.decimal256(76, 0)).cast(type_)


IDS: dict[str, tuple[pa.Array, list[str]]] = {
    "uuid": (pa.array([one.bytes for one in UUIDS], pa.uuid()), [str(one) for one in UUIDS]),
    "json": (pa.array(["1", '"a"', "[]"], pa.json_()), ["1", '"a"', "[]"]),
    "decimal(38, 0)": (decimals(pa.decimal128(38, 0), [7, -1, 10**37]), ["7", "-1", str(10**37)]),
    "decimal(76, 0)": (decimals(pa.decimal256(76, 0), [7, 0, 10**75]), ["7", "0", str(10**75)]),
    "decimal(18, 0)": (decimals(pa.decimal64(18, 0), [7, 0, 10**17]), ["7", "0", str(10**17)]),
    "decimal(9, 0)": (decimals(pa.decimal32(9, 0), [7, 100, -(10**8)]), ["7", "100", str(-(10**8))]),
    "uint64": (pa.array([2**63, 2**64 - 1, 0], pa.uint64()), [str(2**63), str(2**64 - 1), "0"]),
    "int64": (pa.array([2**53 + 1, -(2**63), -5]), [str(2**53 + 1), str(-(2**63)), "-5"]),
    "int8": (pa.array([1, -128, 127], pa.int8()), ["1", "-128", "127"]),
    "category": (pa.array(["b", "a", "007"]).dictionary_encode(), ["b", "a", "007"]),
    "category of integers": (pa.array([2**64 - 1, 1, 2], pa.uint64()).dictionary_encode(), [str(2**64 - 1), "1", "2"]),
    "string_view": (pa.array(["007", " x", "é"], pa.string_view()), ["007", " x", "é"]),
    "large_string": (pa.array(["1e3", "+7", "1.0"], pa.large_string()), ["1e3", "+7", "1.0"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_asked_for_by_the_text_that_the_user_would_write(
    redis_client: Client, tmp_path: Path, kind: str
) -> None:
    column, ids = IDS[kind]
    world = AnyTable(redis_client, tmp_path, X)
    path = world.write("t/p.parquet", id=column, x=[1.0, 2.0, 3.0])

    done = world.run()
    assert (done.state, done.error) == (RunState.PUBLISHED, None)
    assert world.answers(*ids) == [1.0, 2.0, 3.0]
    world.load()
    assert [world.loaded(one)["x"] for one in ids] == [1.0, 2.0, 3.0]
    assert world.ids_in(path) == ids
    some = world.run(entities=world.ids_in(path)[1:])
    assert (some.state, some.rows_done) == (RunState.PUBLISHED, 2)
    source = open_source(str(path))
    guess = guess_entity_column(read_first_rows(source, entity_candidates(source.schema)))
    assert guess.value == "id"


def test_ids_of_files_with_other_integers_stay_exact(redis_client: Client, tmp_path: Path) -> None:
    world = AnyTable(redis_client, tmp_path, X)
    columns = [
        pa.array([2**64 - 1], pa.uint64()),
        pa.array([-(2**63)], pa.int64()),
        pa.array([5], pa.int8()),
        decimals(pa.decimal128(38, 0), [2**53 + 1]),
    ]
    for number, column in enumerate(columns):
        world.write(f"t/{number}.parquet", id=column, x=[float(number)])

    assert world.run().state is RunState.PUBLISHED
    ids = [str(2**64 - 1), str(-(2**63)), "5", str(2**53 + 1)]
    assert world.answers(*ids) == [0.0, 1.0, 2.0, 3.0]
    world.load()
    assert [world.loaded(one)["x"] for one in ids] == [0.0, 1.0, 2.0, 3.0]


# --- ids in the names of folders ---


@pytest.mark.parametrize(
    "folders",
    [
        ["007"],
        ["007", "8"],
        ["007", "8", "a"],
        ["01001", "2A001"],
        ["04", "4"],
        ["1.0", "1", "1e0"],
        ["2026-01-01", "2026-01-02"],
        ["+5", "-0"],
        ["18446744073709551615"],
        ["a b", "ü"],
    ],
)
def test_an_id_is_as_its_folder_is_called_whatever_the_others_are(
    redis_client: Client, tmp_path: Path, folders: list[str]
) -> None:
    world = AnyTable(redis_client, tmp_path, X)
    for number, folder in enumerate(folders):
        world.write(f"t/id={folder.replace(' ', '%20')}/p.parquet", x=[float(number)])

    assert world.run().state is RunState.PUBLISHED
    right = [float(number) for number in range(len(folders))]
    assert world.answers(*folders) == right
    world.load()
    assert [world.loaded(one)["x"] for one in folders] == right
    assert sorted(world.ids_in(tmp_path / "t" / f"id={folders[0]}".replace(" ", "%20") / "p.parquet")) == [folders[0]]
    again = world.run(entities=folders[:1])
    assert (again.state, again.rows_done) == (RunState.PUBLISHED, 1)


def test_an_id_that_repeats_is_named_as_its_folder_is_called(redis_client: Client, tmp_path: Path) -> None:
    world = AnyTable(redis_client, tmp_path, X)
    world.write("t/id=007/p.parquet", x=[1.0, 2.0])
    world.write("t/id=8/p.parquet", x=[1.0])

    done = world.run()

    assert done.state is RunState.FAILED
    assert "'007'" in (done.error or "")
    with pytest.raises(SourceError, match="such as '007'"):
        world.load()


def test_a_folder_is_text_for_a_feature_of_text_and_a_number_for_one_of_numbers(
    redis_client: Client, tmp_path: Path
) -> None:
    zip_code = Feature("zip", DType.STRING, categories=("04109", "89073"))
    world = AnyTable(redis_client, tmp_path, zip_code, Feature("hour", DType.INT32))
    world.write("t/zip=04109/hour=06/p.parquet", id=["a"])
    world.write("t/zip=89073/hour=13/p.parquet", id=["b"])

    assert world.run().state is RunState.PUBLISHED
    world.load()
    assert world.loaded("a") == {"zip": "04109", "hour": 6}
    assert open_source(str(tmp_path / "t")).schema.field("zip").type == pa.int64()
    found = open_table(world.settings, "m", world.settings.models["m"], world.model.record)
    assert not isinstance(found, Finding)
    tried = SampleRows(str(tmp_path / "t")).sample(world.model.vectoriser)
    assert tried is not None
    assert tried.inputs["zip"].tolist() == ["04109", "89073"]


# --- what cannot be an id ---

UNFIT: dict[str, tuple[pa.Array, str]] = {
    "double": (
        pa.array([1.0, 2.0]),
        "is double: cast it to an integer or to text, such as CAST(uid AS BIGINT) in SQL, "
        'df["uid"].astype("Int64") in pandas',
    ),
    "half float": (pa.array([1, 2], pa.float16()), "is float: cast it to an integer or to text, such as CAST(uid AS"),
    "decimal with a fraction": (
        pa.array([Decimal("1.00"), Decimal("2.50")]),
        "is decimal128(3, 2): cast it to an integer, such as CAST(uid AS BIGINT) in SQL",
    ),
    "bytes of a uuid": (
        pa.array([one.bytes for one in UUIDS[:2]], pa.binary(16)),
        'is binary: write it as text, such as hex(uid) in SQL, df["uid"].map(bytes.hex) in pandas',
    ),
    "binary": (pa.array([b"a", b"b"]), "is binary: write it as text, such as hex(uid) in SQL"),
    "binary_view": (pa.array([b"a", b"b"], pa.binary_view()), "is binary: write it as text, such as hex(uid) in SQL"),
    "bool": (
        pa.array([True, False]),
        'is bool: cast it to text, such as CAST(uid AS VARCHAR) in SQL, df["uid"].astype("string") in pandas',
    ),
    "timestamp": (
        pa.array([1, 2], pa.timestamp("us")),
        "is timestamp[us]: cast it to text, such as CAST(uid AS VARCHAR) in SQL",
    ),
    "lists": (pa.array([["a"], ["b"]]), "is list<item: string>: use a column of text or integers"),
    "struct": (pa.array([{"a": 1}, {"a": 2}]), "is struct<a: int64>: use a column of text or integers"),
    "nothing": (pa.nulls(2), "is null: it holds no values: write an id into each row"),
    "category of doubles": (pa.array([1.5, 2.5]).dictionary_encode(), "is double: cast it to an integer or to text"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_an_id_is_refused_by_everybody_in_the_same_sentence(
    redis_client: Client, tmp_path: Path, kind: str
) -> None:
    column, sentence = UNFIT[kind]
    world = AnyTable(redis_client, tmp_path, X, entity_column="uid")
    path = world.write(uid=column, x=[1.0, 2.0])
    told = f"entity column 'uid' {sentence}"

    done = world.run()
    assert done.state is RunState.FAILED
    assert str(done.error).startswith(told)
    assert "\n" not in str(done.error)
    for refuse in (world.load, lambda: world.ids_in(path), init(tmp_path, "uid").run):
        with pytest.raises(SourceError) as caught:
            refuse()
        assert caught.value.message == done.error
        assert caught.value.field == "uid"
    found = open_table(world.settings, "m", world.settings.models["m"])
    assert isinstance(found, Finding)
    assert found.detail == done.error


def init(folder: Path, entity_column: str | None) -> Onboarding:
    (folder / "model" / "1").mkdir(parents=True, exist_ok=True)
    options = Options(
        model=str(folder / "model"),
        features=str(folder / "t"),
        entity_column=entity_column,
        event_time_column=None,
        columns=None,
        name="m",
        schedule="1h",
        force=False,
    )
    return Onboarding(options, Asker(interactive=False, accepts=True))


@pytest.mark.parametrize("kind", ["double", "decimal with a fraction", "bytes of a uuid", "binary_view", "bool"])
def test_the_guess_says_which_column_was_passed_over_and_why(tmp_path: Path, kind: str) -> None:
    column, sentence = UNFIT[kind]
    pq.write_table(pa.table({"uid": column, "x": [1.0, 2.0]}), tmp_path / "t")
    source = open_source(str(tmp_path / "t"))

    guess = guess_entity_column(
        read_first_rows(source, entity_candidates(source.schema)), unfit_id_columns(source.schema)
    )

    assert guess.value is None
    assert guess.reason.startswith(
        "no column looks like one id a row (none of text or integers is named like an id); entity column 'uid' "
        f"{sentence}"
    )


def test_the_guess_names_the_columns_that_repeat(tmp_path: Path) -> None:
    pq.write_table(pa.table({"country": ["DE", "DE"], "user_id": [1.0, 2.0]}), tmp_path / "t")
    source = open_source(str(tmp_path / "t"))

    reason = guess_entity_column(
        read_first_rows(source, entity_candidates(source.schema)), unfit_id_columns(source.schema)
    ).reason

    assert reason.startswith(
        "no column looks like one id a row ('country': not unique in all 2 rows; `--rows newest` takes "
        "the newest of several); entity column 'user_id' is double"
    )


@pytest.mark.parametrize("name", ['a"b', "a b", "größe", "select", "a\nb", "1x", "\u202eid"])
def test_the_expressions_name_any_column_on_one_line(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        check_entity_column_type(name, pa.float64())

    assert caught.value.message.isprintable()
    assert re.search(r"CAST\(.+ AS BIGINT\) in SQL, df\[\".+\"\]\.astype\(\"Int64\"\) in pandas", caught.value.message)


def test_ids_of_a_file_without_any_are_all_missing() -> None:
    assert entity_ids_as_text(pa.nulls(2)).to_pylist() == [None, None]
    assert entity_ids_as_text(pa.nulls(2)).type == pa.string()
