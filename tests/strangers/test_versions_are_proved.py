"""A version answers rows of its model's table before it may take the place of one that serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.base import BaseEstimator

from inference.errors import ModelError, ModelUnavailable, SourceError
from inference.features import load_features
from inference.models import ModelHost, ModelRegistry, Rollout, VersionRecord, inspect_versions
from inference.models.loading import inspect_version_in_subprocess, table_of
from inference.models.runtimes import LoadOptions
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import Settings
from inference.store import Table
from tests.support.plain_models import (
    AlwaysAnswers,
    Broken,
    OnlyPositive,
    Times,
    Vocabulary,
    write_version,
)
from tests.support.stack import ROOT

WORD = [{"name": "word", "dtype": "string"}]
NUMBER = [{"name": "x", "dtype": "float32"}]


def try_here(settings: Settings, model: str, version: int) -> VersionRecord:
    """What a process of its own would find, without the seconds that its start takes."""
    of_model = settings.models[model]
    options = LoadOptions(allow_code=of_model.allow_code, code_folder=settings.root)
    table = table_of(settings, of_model)
    record = inspect_versions(settings.path(of_model.path), [version], options=options, table=table)[version]
    if record.error:
        raise ModelError(record.error)
    return record


class Room:
    """One worker's view of model `m`, whose folder and table a test fills."""

    def __init__(self, folder: Path, client: Client, *, table: bool = True) -> None:
        self.folder, self.table = folder / "m", folder / "t.parquet"
        features = {"features": str(self.table)} if table else {}
        model = {"path": str(self.folder), "allow_code": True, **features}
        self.settings = Settings.model_validate({"models": {"m": model}})
        self.registry = ModelRegistry(client, Keys("t"))
        self.host = self.worker()
        self.rollout = Rollout(
            self.settings, self.host, self.registry, "m", answers=True, others=list, try_apart=try_here
        )

    def worker(self) -> ModelHost:
        return ModelHost(self.settings, self.registry, try_apart=try_here)

    def put(self, version: int, model: BaseEstimator, features: list[dict[str, Any]] = NUMBER) -> None:
        write_version(self.folder, version, model, features)

    def write_table(self, **columns: Any) -> None:
        rows = len(next(iter(columns.values())))
        pq.write_table(pa.table({"entity_id": [f"u{i}" for i in range(rows)], **columns}), self.table)

    def look(self) -> None:
        """Look twice: a folder is left alone until it stands still."""
        self.rollout.look()
        self.rollout.look()

    @property
    def active(self) -> int | None:
        return self.registry.active_version("m")

    def remark(self, version: int) -> str:
        return self.registry.versions("m")[version].remark or ""


@pytest.fixture
def room(tmp_path: Path, redis_client: Client) -> Room:
    return Room(tmp_path, redis_client)


@pytest.fixture
def without_table(tmp_path: Path, redis_client: Client) -> Room:
    return Room(tmp_path, redis_client, table=False)


def test_a_version_that_fails_on_every_row_with_text_never_replaces_a_good_one(room: Room) -> None:
    room.write_table(word=["ab"] * 9)
    room.put(1, Vocabulary({"ab": 2.0}), WORD)
    room.host.start()
    assert (room.active, room.remark(1)) == (1, "")
    room.put(2, Vocabulary({"cd": 2.0}), WORD)
    room.look()
    assert room.active == 1
    assert room.registry.versions("m")[2].state == "refused"
    assert "fails on each of the 9 rows tried of t.parquet" in room.remark(2)
    assert "KeyError" in room.remark(2) or "'ab'" in room.remark(2)


@pytest.mark.parametrize(
    ("bad", "columns", "features"),
    [
        (Broken(), {"x": [1.0, 2.0, 3.0]}, NUMBER),
        (AlwaysAnswers(float("nan")), {"x": [1.0, 2.0]}, NUMBER),
        (AlwaysAnswers([1.0, float("inf")]), {"x": [1.0, 2.0]}, NUMBER),
        (OnlyPositive(), {"x": [-1.0, -2.0]}, NUMBER),
        (Vocabulary({"": 1.0}), {"word": ["a", "b"]}, WORD),
    ],
    ids=["raises", "not a number", "one output of two", "numbers out of range", "knows made-up text only"],
)
def test_whatever_makes_it_fail_on_all_rows_it_is_refused(
    room: Room, bad: BaseEstimator, columns: dict[str, Any], features: list[dict[str, Any]]
) -> None:
    room.write_table(**columns)
    room.put(1, AlwaysAnswers(1.0), features)
    room.host.start()
    room.put(2, bad, features)
    room.look()
    assert room.active == 1
    assert room.registry.versions("m")[2].state == "refused"
    assert room.host.versions() == {"m": (1,)}


def test_a_version_that_answers_some_of_the_rows_is_good(room: Room) -> None:
    room.write_table(word=["odd"] * 900 + ["ab"] * 100)
    room.put(1, Vocabulary({"ab": 2.0}), WORD)
    room.host.start()
    room.put(2, Vocabulary({"ab": 3.0}), WORD)
    room.look()
    assert (room.active, room.remark(2)) == (2, "")


def test_rows_with_gaps_are_no_rows_to_try(room: Room) -> None:
    room.write_table(x=pa.array([None, None, 5.0], pa.float32()))
    room.put(1, OnlyPositive())
    room.host.start()
    assert room.registry.versions("m")[1].is_proved
    room.put(2, OnlyPositive(2.0))
    room.look()
    assert room.active == 2


def test_a_first_version_that_refuses_made_up_rows_serves_by_those_of_the_table(room: Room) -> None:
    room.write_table(x=[3.0, 4.0])
    room.put(1, OnlyPositive())
    room.host.start()
    assert (room.active, room.remark(1)) == (1, "")


def test_a_first_version_that_answers_no_row_is_refused(room: Room) -> None:
    room.write_table(x=[3.0, 4.0])
    room.put(1, Broken())
    room.host.start()
    assert room.active is None
    assert "IndexError" in room.remark(1) or "index 7" in room.remark(1)


@pytest.mark.parametrize("trouble", ["gone", "damaged", "empty", "no column", "no usable row"])
def test_while_the_table_cannot_be_tried_a_version_waits_and_comes_when_it_can(room: Room, trouble: str) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, Times())
    room.host.start()
    if trouble == "gone":
        room.table.unlink()
    elif trouble == "damaged":
        room.table.write_bytes(b"PAR1 no table")
    elif trouble == "empty":
        room.write_table(x=pa.array([], pa.float32()))
    elif trouble == "no column":
        room.write_table(y=[1.0])
    else:
        room.write_table(x=pa.array([None], pa.float32()))
    room.put(2, Times(2.0))
    room.look()
    assert (room.active, room.host.versions()) == (1, {"m": (1,)})
    assert room.registry.versions("m")[2].state == "ready"
    assert "its table cannot be tried" in room.remark(2)
    room.write_table(x=[1.0, 2.0])
    room.look()
    assert (room.active, room.remark(2)) == (2, "")


def test_a_worker_that_starts_keeps_the_version_that_answers_whatever_became_of_the_table(room: Room) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, OnlyPositive())
    room.host.start()
    for spoil in (lambda: room.write_table(x=[-1.0]), room.table.unlink):
        spoil()
        another = room.worker()
        another.start()
        assert another.versions() == {"m": (1,)}
        assert room.remark(1) == ""


def test_a_first_version_serves_though_the_table_is_not_there_yet(room: Room) -> None:
    room.put(1, Times())
    room.host.start()
    assert room.active == 1
    assert "its table cannot be tried" in room.remark(1)


def test_without_a_table_made_up_rows_neither_refuse_the_first_version_nor_activate_the_second(
    without_table: Room,
) -> None:
    room = without_table
    room.put(1, OnlyPositive())
    room.host.start()
    assert (room.active, "made-up rows" in room.remark(1)) == (1, True)
    room.put(2, OnlyPositive(2.0))
    room.look()
    assert room.active == 1
    assert "made-up rows" in room.remark(2)
    room.registry.label("m", "stable", 2)
    room.look()
    assert room.active == 2


def test_without_a_table_one_that_answers_made_up_rows_comes_as_ever(without_table: Room) -> None:
    room = without_table
    room.put(1, OnlyPositive())
    room.put(2, Times())
    room.host.start()
    assert room.active == 2
    room.put(3, Times(3.0))
    room.look()
    assert room.active == 3


def test_of_several_first_versions_one_that_answers_goes_before_a_newer_one_of_which_nothing_is_known(
    without_table: Room,
) -> None:
    room = without_table
    room.put(1, Times())
    room.put(2, OnlyPositive())
    room.host.start()
    assert (room.active, room.host.versions()) == (1, {"m": (1,)})
    room.look()
    assert room.active == 1


def test_what_a_request_brings_is_made_up_and_decides_nothing(room: Room) -> None:
    contract = [*NUMBER, {"name": "asked", "dtype": "float32", "group": "asked"}]
    room.put(1, AlwaysAnswers(1.0, 2), contract)
    (room.folder / "features.json").write_text(
        '{"features": [{"name": "x", "dtype": "float32"}, {"name": "asked", "dtype": "float32", "group": "asked", '
        '"default": 0.0}], "groups": {"asked": {"source": "request"}}}'
    )
    room.write_table(x=[1.0, 2.0])
    room.host.start()
    assert (room.active, room.remark(1)) == (1, "")


@pytest.mark.slow
def test_the_trial_process_reads_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pq.write_table(pa.table({"id": ["u"], "word": ["ab"]}), tmp_path / "t.parquet")
    write_version(tmp_path / "m", 1, Vocabulary({"cd": 1.0}), WORD)
    model = {"path": str(tmp_path / "m"), "allow_code": True, "features": str(tmp_path / "t.parquet")}
    with pytest.raises(ModelError, match=r"fails on each of the 1 row tried of t\.parquet"):
        inspect_version_in_subprocess(Settings.model_validate({"models": {"m": model}}), "m", 1)


def store_features(room: Room, client: Client, **columns: Any) -> None:
    """Load features of entities, from a table that the settings do not name."""
    path = room.folder.parent / "elsewhere.parquet"
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"entity_id": [f"u{i}" for i in range(rows)], **columns}), path)
    table = Table(client, Keys("t").table(TableKind.FEATURES, "m"), kind=TableKind.FEATURES, model="m")
    vectoriser = room.host.get("m").vectoriser
    load_features(table, str(path), vectoriser, entity_column="entity_id", event_time_column=None, keep_s=3600)


def test_without_a_table_rows_of_the_feature_table_decide(without_table: Room, redis_client: Client) -> None:
    room = without_table
    room.put(1, Vocabulary({"": 0.0, "ab": 2.0}), WORD)
    room.host.start()
    store_features(room, redis_client, word=["ab"] * 200)
    room.put(2, Vocabulary({"": 0.0}), WORD)
    room.look()
    assert room.active == 1
    assert "rows tried of the feature table" in room.remark(2)
    room.put(3, Vocabulary({"ab": 3.0}), WORD)
    room.look()
    assert (room.active, room.remark(3)) == (3, "")


def test_while_the_table_is_away_rows_of_the_feature_table_decide(room: Room, redis_client: Client) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, OnlyPositive())
    room.host.start()
    store_features(room, redis_client, x=pa.array([1.0, 2.0], pa.float32()))
    room.table.unlink()
    room.put(2, OnlyPositive(2.0))
    room.look()
    assert (room.active, room.remark(2)) == (2, "")


def test_features_that_are_loaded_later_bring_a_version_that_waits(without_table: Room, redis_client: Client) -> None:
    room = without_table
    room.put(1, OnlyPositive())
    room.host.start()
    room.put(2, OnlyPositive(2.0))
    room.look()
    assert room.active == 1
    store_features(room, redis_client, x=pa.array([1.0, 2.0], pa.float32()))
    room.look()
    assert (room.active, room.remark(2)) == (2, "")


def test_a_worker_that_cannot_read_the_table_takes_the_word_of_one_that_can(room: Room) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, OnlyPositive())
    room.host.start()
    away = room.table.rename(room.table.with_suffix(".away"))
    room.put(2, OnlyPositive(2.0))
    room.look()
    assert room.active == 1
    elsewhere = room.worker()
    away.rename(room.table)
    elsewhere.load("m", 2)
    room.table.unlink()
    room.rollout.look()
    assert (room.active, room.remark(2)) == (2, "")


def test_a_proof_that_comes_while_another_worker_loads_is_not_lost(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, OnlyPositive())
    room.host.start()
    room.put(2, OnlyPositive(2.0))
    elsewhere = room.worker()

    class Away:
        def sample(self, _: Any) -> Any:
            elsewhere.load("m", 2)
            raise SourceError("the table is away")

    monkeypatch.setattr(room.host, "sample_rows", lambda _: Away())
    assert room.host.load("m", 2, must_answer=True).record.is_proved
    assert room.remark(2) == ""


def test_a_proof_of_other_files_proves_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.write_table(x=[1.0, 2.0])
    room.put(1, OnlyPositive())
    room.host.start()
    room.put(2, OnlyPositive(2.0))
    elsewhere = room.worker()

    class Away:
        def sample(self, _: Any) -> Any:
            elsewhere.load("m", 2)
            known = room.registry.versions("m")[2]
            room.registry.put("m", replace(known, fingerprint="before it was replaced"))
            raise SourceError("the table is away")

    monkeypatch.setattr(room.host, "sample_rows", lambda _: Away())
    with pytest.raises(ModelUnavailable, match="version 2 of model 'm' waits"):
        room.host.load("m", 2, must_answer=True)
