"""`init` finds ids and features in tables whatever types their writers chose, and scores a row of them."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from app.cli.init import Asker, Options
from app.cli.onboarding import Onboarding
from inference.errors import ForecacheError, SourceError
from inference.models import VersionRecord, inspect_versions
from inference.onboarding.trial import try_row
from inference.settings import Settings, load_settings
from tests.support.plain_onnx import tensor, write_onnx


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model that adds `x` to a number for each `city`, of which none may be missing."""
    cities = ["Ulm", "Bonn", "04109", "49", "?"]
    encode = helper.make_node(
        "LabelEncoder",
        ["city"],
        ["code"],
        domain="ai.onnx.ml",
        keys_strings=cities,
        values_floats=[10.0, 20.0, 30.0, 40.0, 50.0],
        default_float=-1.0,
    )
    add = helper.make_node("Add", ["code", "x"], ["y"])
    inputs = [tensor("city", dtype=TensorProto.STRING), tensor("x")]
    write_onnx(tmp_path / "models/m/1", [encode, add], inputs, [tensor("y")])
    features = [{"name": "city", "dtype": "string", "default": "?"}, {"name": "x", "dtype": "float32"}]
    (tmp_path / "models/m/features.json").write_text(json.dumps({"features": features}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORECACHE_CONFIG", raising=False)
    return tmp_path


def inspect_here(settings: Settings, model: str) -> dict[int, VersionRecord]:
    return inspect_versions(settings.path(settings.model(model)[1].path), "latest")


def init(features: str, *, entity_column: str | None = None, rows: Literal["one", "newest"] = "one") -> None:
    options = Options(
        model="models/m",
        features=features,
        entity_column=entity_column,
        rows=rows,
        event_time_column=None,
        columns=None,
        name=None,
        schedule="1h",
        force=False,
    )
    asker = Asker(interactive=False, accepts=True)
    Onboarding(options, asker, inspect=inspect_here, try_row=try_row).run()


UUID = uuid.UUID("8f14e45f-ceea-467f-a8e0-9d1f0a3b5c7d")
TABLES = {
    "views": (pa.array(["a", "b"], pa.string_view()), pa.array(["Ulm", None], pa.string_view()), "'a' -> 11.0"),
    "views, a gap first": (
        pa.array(["a", "b"], pa.string_view()),
        pa.array([None, "Ulm"], pa.string_view()),
        "'a' -> 51.0",
    ),
    "categories": (
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["Bonn", None]).dictionary_encode(),
        "'a' -> 21.0",
    ),
    "uuids": (pa.array([UUID.bytes, bytes(16)], pa.uuid()), pa.array(["Ulm", "Bonn"]), f"'{UUID}' -> 11.0"),
    "decimals": (
        pa.array([7, 8], pa.int64()).cast(pa.decimal128(38, 0)),
        pa.array(["Ulm", "Bonn"], pa.large_string()),
        "'7' -> 11.0",
    ),
    "large unsigned integers": (pa.array([2**64 - 1, 1], pa.uint64()), pa.nulls(2), f"'{2**64 - 1}' -> 51.0"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_id_is_guessed_and_a_row_is_scored(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    ids, city, scored = TABLES[kind]
    pq.write_table(pa.table({"ID": ids, "city": city, "x": [1.0, 2.0]}), folder / "t.parquet")

    init("t.parquet")

    assert load_settings().models["m"].entity_column == "ID"
    assert scored in capsys.readouterr().out


def test_folders_are_text_for_ids_and_for_a_feature_of_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, code in (("007", "04109"), ("8", "49")):
        path = folder / f"t/id={number}/city={code}/p.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"x": [1.0]}), path)

    init("t")

    assert load_settings().models["m"].entity_column == "id"
    assert "'007' -> 31.0" in capsys.readouterr().out


def test_a_day_without_types_does_not_hide_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "t").mkdir()
    pq.write_table(pa.table({"id": pa.nulls(0), "city": pa.nulls(0), "x": pa.nulls(0)}), folder / "t/1.parquet")
    pq.write_table(pa.table({"id": ["a"], "city": pa.nulls(1), "x": [1]}), folder / "t/2.parquet")
    pq.write_table(pa.table({"id": ["b"], "city": ["Ulm"], "x": [0.5]}), folder / "t/3.parquet")

    init("t")

    assert "'a' -> 51.0" in capsys.readouterr().out


def test_a_feature_that_differs_is_told_before_anything_is_written(folder: Path) -> None:
    (folder / "t").mkdir()
    pq.write_table(pa.table({"id": ["a"], "city": ["Ulm"], "x": [1.0]}), folder / "t/1.parquet")
    pq.write_table(pa.table({"id": ["b"], "city": ["Ulm"], "x": ["1"]}), folder / "t/2.parquet")

    with pytest.raises(
        SourceError, match=r"column 'x' is string in .*2\.parquet, but double in .*1\.parquet: write it"
    ):
        init("t")
    assert not (folder / "forecache.toml").exists()


def test_a_history_table_is_offered_the_newest_row_and_taken_with_it(folder: Path) -> None:
    now = pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC"))
    columns = {"id": ["a", "a"], "city": ["Ulm", "Bonn"], "x": [1.0, 2.0], "updated_at": pa.repeat(now, 2)}
    pq.write_table(pa.table(columns), folder / "t.parquet")

    with pytest.raises(ForecacheError, match="--rows newest"):
        init("t.parquet", entity_column="id")
    init("t.parquet", rows="newest")

    model = load_settings().models["m"]
    assert (model.entity_column, model.rows, model.event_time_column) == ("id", "newest", "updated_at")


def test_the_newest_row_needs_a_column_that_dates_it(folder: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "a"], "city": ["Ulm", "Bonn"], "x": [1.0, 2.0]}), folder / "t.parquet")
    with pytest.raises(ForecacheError, match="--rows newest needs --event-time-column"):
        init("t.parquet", rows="newest")
