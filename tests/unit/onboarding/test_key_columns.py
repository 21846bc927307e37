"""What is guessed from names, types and first rows, and what is better left to a person."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.errors import SourceError
from inference.onboarding.key_columns import (
    FirstRows,
    check_entity_column,
    entity_candidates,
    given_event_time,
    guess_entity_column,
    guess_event_time,
    guess_model_name,
    newest_times,
    read_first_rows,
    time_candidates,
)
from inference.settings.settings import MODEL_NAME
from inference.sources import open_source

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def head(**columns: object) -> FirstRows:
    return FirstRows(pa.table(columns), whole=False)


def entity_guess(table: pa.Table, hints: str = "") -> str | None:
    return guess_entity_column(FirstRows(table.select(entity_candidates(table.schema, hints)), whole=True)).value


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models/delay", "delay"),
        ("models/Delay v2", "delay-v2"),
        ("models/delay/3", "delay"),
        ("models/-x-", "x"),
        ("m/Größe", "gr-e"),
        ("/1", "model"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_model_is_called_after_its_folder(folder: str, name: str) -> None:
    assert guess_model_name(Path(folder)) == name
    assert MODEL_NAME.match(name)


@pytest.mark.parametrize(
    ("columns", "hints", "guess"),
    [
        ({"name": ["a", "b"], "user_id": [1, 2]}, "", "user_id"),
        ({"id": [1, 2], "entity_id": ["a", "b"]}, "", "entity_id"),
        ({"session_id": [1, 2], "user_id": [3, 4]}, "users", "user_id"),
        ({"customerKey": ["a", "b"], "note": ["c", "d"]}, "", "customerKey"),
        ({"flight": ["a", "b"], "carrier": ["x", "y"]}, "flights", "flight"),
        ({"country_id": [1, 1], "code": ["a", "b"]}, "", "code"),
        ({"age": [1, 2], "income": [3.0, 4.0]}, "", None),
        ({"user_id": [1.0, 2.0]}, "", None),
        ({"user_id": ["a", None]}, "", None),
        ({"user_id": ["a", "b\n"]}, "", None),
    ],
)
def test_the_entity_column_is_one_whose_ids_differ(columns: dict[str, list[object]], hints: str, guess: str) -> None:
    assert entity_guess(pa.table(columns), hints) == guess


def test_a_guess_says_how_far_it_looked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": list(range(10_500))}), tmp_path / "t.parquet", row_group_size=400)
    source = open_source(str(tmp_path / "t.parquet"))
    assert (
        guess_entity_column(read_first_rows(source, ["user_id"])).reason == "integers, unique in the first 10 000 rows"
    )
    assert (
        guess_entity_column(read_first_rows(source, ["user_id"], rows=20_000)).reason
        == "integers, unique in all 10 500 rows"
    )


def test_long_texts_end_the_head_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.onboarding.key_columns.FIRST_BYTES", 1 << 20)
    pq.write_table(pa.table({"id": [str(i) * 1000 for i in range(10_000)]}), tmp_path / "t.parquet")
    assert read_first_rows(open_source(str(tmp_path / "t.parquet")), ["id"]).table.num_rows == 1_000


def test_a_column_of_repeated_ids_is_refused_with_one_of_them() -> None:
    with pytest.raises(
        SourceError, match=r"'country' repeats 'DE' in the first 3 rows: a table has one row per entity"
    ):
        check_entity_column(head(country=["DE", "FR", "DE"]), "country")


@pytest.mark.parametrize(
    ("age", "guess"),
    [(timedelta(hours=1), "updated_at"), (timedelta(days=-1), "updated_at"), (timedelta(days=2), None)],
)
def test_an_event_time_is_taken_when_it_leaves_answers_fresh(age: timedelta, guess: str | None) -> None:
    found = guess_event_time(["updated_at"], {"updated_at": NOW - age}, NOW)
    assert found.value == guess
    assert guess or "every answer would be marked stale" in found.reason


def test_a_timestamp_that_does_not_date_the_row_is_only_mentioned() -> None:
    found = guess_event_time(["signup"], {"signup": NOW}, NOW)
    assert found.value is None
    assert "'signup'" in found.reason


def test_names_that_date_a_row_come_first() -> None:
    types = {
        "born": pa.date32(),
        "ts": pa.timestamp("ns"),
        "updated_at": pa.timestamp("us", "UTC"),
        "when": pa.string(),
    }
    assert time_candidates(pa.schema(types)) == ["updated_at", "ts", "born"]


def test_a_named_event_time_is_obeyed_and_its_age_told() -> None:
    found = given_event_time("t", {"t": datetime(2020, 1, 2, tzinfo=UTC)}, NOW)
    assert found.value == "t"
    assert found.reason == "as given; its newest is of 2020-01-02 00:00 UTC, so every answer will be marked stale"


@pytest.mark.parametrize(
    "type_", [pa.timestamp("s"), pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("ns"), pa.date32()]
)
def test_footers_tell_the_newest_instant_of_all_files(tmp_path: Path, type_: pa.DataType) -> None:
    for day in (3, 9, 5):
        table = pa.table({"id": [day], "at": pa.array([date(2026, 11, day)]).cast(pa.timestamp("s")).cast(type_)})
        pq.write_table(table, tmp_path / f"{day}.parquet")
    newest = newest_times(open_source(str(tmp_path)), ["at", "id"])
    assert newest["at"].astimezone(UTC).date() == date(2026, 11, 9)
    assert "id" not in newest
