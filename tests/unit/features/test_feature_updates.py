"""Single updates of features, over tables in memory; `tests/contract/test_tables.py` holds those to Redis' ways."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import BadEntityId, BadInput, Conflict, ContractError
from inference.features import EARLIEST_S, Feature, FeatureContract, FeatureUpdate, FeatureWriter
from inference.features.group_rows import stored_features
from inference.features.updates import CLOCK_TOLERANCE_S
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from inference.schema import DType, TensorSpec
from inference.store import Origin
from tests.support.redis_server import RedisServer
from tests.support.tables import new_table, timed_client

NOW = int(time.time()) + 0.5
CONTRACT = FeatureContract(
    (
        Feature("x", DType.FLOAT32),
        Feature("n", DType.INT64, default=7),
        Feature("name", DType.STRING, default=""),
        Feature("pair", DType.FLOAT32, (2,), default=0.0),
    )
)


class Room:
    def __init__(self, url: str) -> None:
        self.now = NOW
        self.client = timed_client(url, lambda: self.now)
        self.features, self.predictions = new_table(self.client), new_table(self.client, TableKind.PREDICTIONS)
        self.writer = FeatureWriter(self.features, self.predictions, CONTRACT, keep_s=3600)

    def load(self, *, as_of: float) -> None:
        manifest = self.features.generations.begin(
            CONTRACT.stored_fields, rows_expected=1, model_version=0, contract_hash=CONTRACT.hash, keep_s=3600
        )
        block = {
            "x": np.array([1], np.float32), "n": np.array([2]), "name": np.array(["old"], object),
            "pair": np.array([[3, 4]], np.float32),
        }  # fmt: skip
        block |= CONTRACT.stored_form.notes({}, {}, 1)
        self.features.generations.write(manifest, pa.array(["a"]), block, np.array([as_of]))
        self.features.generations.publish(manifest.number)

    def put(self, entity_id: str = "a", *, at: float | None = None, **features: Any) -> tuple[bool, float]:
        [result] = self.writer.write([FeatureUpdate(entity_id, features, at)])
        return result.applied, result.as_of

    def stored(self, entity_id: str = "a") -> dict[str, Any] | None:
        [entry] = self.features.read([entity_id])
        return entry and {name: value for name, value in entry.values.items() if not name.startswith("@")}


@pytest.fixture
def room(redis_client: Client, redis_server: RedisServer) -> Room:
    return Room(redis_server.url())


def test_features_that_are_not_named_stay_as_they_are(room: Room) -> None:
    room.load(as_of=NOW - 100)
    assert room.put(x=1.5, name="new") == (True, np.floor(NOW))
    assert room.stored() == {"x": 1.5, "n": 2, "name": "new", "pair": [3.0, 4.0]}


def test_of_an_unknown_entity_they_take_their_defaults(room: Room) -> None:
    assert room.put("new", x=1.5)[0]
    assert room.stored("new") == {"x": 1.5, "n": 7, "name": "", "pair": [0.0, 0.0]}


def test_a_vector_names_all_features(room: Room) -> None:
    [result] = room.writer.write([FeatureUpdate("v", [1.5, 2, "t", 5, 6])])
    assert result.applied
    assert room.stored("v") == {"x": 1.5, "n": 2, "name": "t", "pair": [5.0, 6.0]}


def test_newer_features_are_never_overwritten(room: Room) -> None:
    room.load(as_of=NOW - 100)
    assert room.put(at=NOW - 101, x=9) == (False, np.floor(NOW - 100))
    assert room.put(at=NOW - 50, x=5)[0]
    assert room.put(at=NOW - 50.25, x=6) == (False, np.floor(NOW - 50)), "a quarter of a second older"
    assert room.put(at=NOW - 50, x=7)[0], "the same update again"
    assert room.stored() == {"x": 7.0, "n": 2, "name": "old", "pair": [3.0, 4.0]}


def test_a_load_with_newer_times_takes_over(room: Room) -> None:
    room.put(at=NOW - 50, x=5)
    room.load(as_of=NOW - 10)
    assert room.stored() == {"x": 1.0, "n": 2, "name": "old", "pair": [3.0, 4.0]}


def test_an_update_that_was_not_applied_outdates_nothing(room: Room) -> None:
    room.load(as_of=NOW - 100)
    room.predictions.versions.activate(1)
    prediction = (CONTRACT.features[0].spec,)
    block = {"x": np.array([1], np.float32)}
    room.predictions.overlay.upsert(
        ["a"], prediction, block, as_of=np.array([NOW - 100]), computed_at=NOW, model_version=1,
        origin=Origin.REALTIME, keep_s=60,
    )  # fmt: skip
    room.put(at=NOW - 200, x=5)
    assert room.predictions.read(["a"])[0] is not None
    room.put(x=5)
    assert room.predictions.read(["a"])[0] is None


def test_a_change_outdates_the_prediction_that_a_run_made_in_the_same_second(room: Room) -> None:
    second = np.floor(NOW - 100)
    room.load(as_of=second - 100)
    room.predictions.versions.activate(1)
    run = room.predictions.generations.begin(
        (CONTRACT.features[0].spec,), rows_expected=1, model_version=1, contract_hash=CONTRACT.hash, keep_s=3600
    )
    room.predictions.generations.write(
        run, pa.array(["a"]), {"x": np.array([1], np.float32)}, np.array([second + 0.25])
    )
    room.predictions.generations.publish(run.number)
    assert room.put(at=second + 0.75, x=5) == (True, second)
    [entry] = room.predictions.read(["a"])
    assert entry is not None
    assert entry.outdated


def test_two_who_change_different_features_at_once_lose_none(room: Room) -> None:
    room.load(as_of=NOW - 100)
    read, others = room.features.read_for_change, [lambda: room.put(n=11), lambda: room.put(name="theirs")]

    def read_and_be_overtaken(ids: Any) -> Any:
        seen = read(ids)
        if others:
            others.pop()()
        return seen

    room.features.read_for_change = read_and_be_overtaken  # type: ignore[method-assign]
    assert room.put(x=5)[0]
    assert room.stored() == {"x": 5.0, "n": 11, "name": "theirs", "pair": [3.0, 4.0]}


def wrong(features: Any, at: float | None = None, entity_id: str = "a") -> FeatureUpdate:
    return FeatureUpdate(entity_id, features, at)


@pytest.mark.parametrize(
    ("update", "error", "field", "says"),
    [
        (wrong({"nme": "a"}), ContractError, "items.1.features.nme", "did you mean 'name'?"),
        (wrong({"x": "1"}), ContractError, "items.1.features.x", "give a number"),
        (wrong({"x": 1e39}), ContractError, "items.1.features.x", "out of range"),
        (wrong({"n": 2**63}), ContractError, "items.1.features.n", "out of range"),
        (wrong({"n": 1.5}), ContractError, "items.1.features.n", "whole number"),
        (wrong({"x": None}), ContractError, "items.1.features.x", "missing"),
        (wrong({"pair": [1, 2, 3]}), ContractError, "items.1.features.pair", "shape [2]"),
        (wrong([1.5, 2, "t", 5]), ContractError, "items.1.features", "4 values, but the model takes 5"),
        (wrong({}), ContractError, "items.1.features", "at least one"),
        (wrong({"n": 1}), ContractError, "items.1.features", "no features of 'a' are stored yet"),
        (wrong({"x": 1}, NOW + 6), BadInput, "items.1.event_time", "in the future"),
        (wrong({"x": 1}, -1.0), BadInput, "items.1.event_time", "1970"),
        (wrong({"x": 1}, entity_id=""), BadEntityId, "items.1.entity_id", "empty"),
        (wrong({"x": 1}, entity_id="good"), BadInput, "items.1.entity_id", "twice"),
    ],
)
def test_one_bad_update_refuses_all_of_them(
    room: Room, update: FeatureUpdate, error: type[Exception], field: str, says: str
) -> None:
    with pytest.raises(error) as raised:
        room.writer.write([FeatureUpdate("good", {"x": 1}), update], place="items.{}.")
    assert raised.value.field == field  # type: ignore[attr-defined]
    assert says in str(raised.value)
    assert room.stored("good") is None


def test_a_missing_value_names_its_feature_even_if_the_sentence_holds_that_word(room: Room) -> None:
    contract = FeatureContract((Feature("a", DType.FLOAT32),))
    writer = FeatureWriter(room.features, room.predictions, contract, keep_s=60)
    with pytest.raises(ContractError, match=r"^feature 'a': missing, and the feature has no default$"):
        writer.write([wrong({"a": None})])


@pytest.mark.parametrize("ahead_s", [0.0, 4.0, CLOCK_TOLERANCE_S])
def test_an_event_time_a_moment_ahead_counts_as_now(room: Room, ahead_s: float) -> None:
    assert room.put(at=NOW + ahead_s, x=1) == (True, np.floor(NOW))


def test_the_first_second_of_1970_is_the_earliest_event_time(room: Room) -> None:
    assert room.put(at=EARLIEST_S, x=1) == (True, EARLIEST_S)
    with pytest.raises(BadInput, match="before 1970"):
        room.put(at=EARLIEST_S - 0.001, x=1)


def test_an_event_time_of_more_than_a_moment_ahead_is_refused(room: Room) -> None:
    with pytest.raises(BadInput, match="in the future"):
        room.put(at=NOW + CLOCK_TOLERANCE_S + 0.001, x=1)


def test_features_loaded_under_another_contract_are_not_mixed_with_new_ones(room: Room) -> None:
    room.load(as_of=NOW - 100)
    newer = FeatureContract(CONTRACT.features[:2])
    with pytest.raises(Conflict, match="another contract"):
        FeatureWriter(room.features, room.predictions, newer, keep_s=60).write([FeatureUpdate("a", {"x": 1})])


def test_single_features_of_an_older_contract_give_way_to_new_ones(room: Room) -> None:
    room.put(x=1, n=3)
    newer = FeatureContract((*CONTRACT.features[:2], Feature("more", DType.FLOAT32)))
    writer = FeatureWriter(room.features, room.predictions, newer, keep_s=60)
    with pytest.raises(ContractError, match="more"):
        writer.write([FeatureUpdate("a", {"x": 1})])
    assert writer.write([FeatureUpdate("a", {"x": 2, "more": 4})])[0].applied
    assert room.stored() == {"x": 2.0, "n": 7, "more": 4.0}


@pytest.mark.parametrize("age_s", [10, 0.1])
def test_every_update_counts_that_comes_after_a_load(room: Room, age_s: float) -> None:
    room.load(as_of=NOW - age_s)
    room.now += 0.2
    assert room.put(x=2)[0]
    assert (room.stored() or {})["x"] == 2.0


def test_an_update_outdates_the_predictions_of_all_models_that_share_the_features(room: Room) -> None:
    room.load(as_of=NOW - 60)
    other = new_table(room.client, TableKind.PREDICTIONS)
    writer = FeatureWriter(room.features, room.predictions, CONTRACT, keep_s=60, sharing=[other])
    fields = (TensorSpec("y", DType.FLOAT32),)
    for table in (room.predictions, other):
        table.versions.activate(1)
        table.overlay.upsert(["a"], fields, {"y": np.float32([1])}, as_of=np.array([NOW - 60]), computed_at=NOW - 60,
                             model_version=1, origin=Origin.REALTIME, keep_s=60)  # fmt: skip
    assert [table.read(["a"])[0] is None for table in (room.predictions, other)] == [False, False]
    assert writer.write([FeatureUpdate("a", {"x": 1})])[0].applied
    assert [table.read(["a"])[0] is None for table in (room.predictions, other)] == [True, True]


# --- several groups ------------------------------------------------------------------------------------

GROUPS = FeatureContract.from_json(
    {
        "features": [
            {"name": "age", "dtype": "float32", "group": "profile"},
            {"name": "city", "dtype": "string", "group": "profile", "default": ""},
            {"name": "clicks", "dtype": "int64", "group": "session"},
            {"name": "hour", "dtype": "int64", "group": "clock"},
            {"name": "query", "dtype": "string", "group": "asked"},
        ],
        "groups": {
            "profile": {"source": "table"},
            "session": {"source": "table"},
            "clock": {"source": "function", "function": "hour_of_day"},
            "asked": {"source": "request"},
        },
    }
)


@pytest.fixture
def grouped(room: Room) -> Room:
    """A profile of a day ago, and no session."""
    room.writer = FeatureWriter(room.features, room.predictions, GROUPS, keep_s=3600)
    form = GROUPS.stored_form
    manifest = room.features.generations.begin(
        form.fields, rows_expected=1, model_version=0, contract_hash="", keep_s=3600
    )
    times = {"profile": np.array([NOW - 86_400]), "session": np.array([np.nan])}
    block = {"age": np.array([40], np.float32), "city": np.array(["Ulm"], object), "clicks": np.array([0])}
    room.features.generations.write(
        manifest, pa.array(["a"]), block | form.notes({}, times, 1), np.array([NOW - 86_400])
    )
    room.features.generations.publish(manifest.number)
    return room


def stored(room: Room) -> tuple[dict[str, Any], dict[str, float]]:
    return stored_features(room.features, GROUPS, "a")


def test_each_group_has_an_age_of_its_own(grouped: Room) -> None:
    assert stored(grouped) == ({"age": 40.0, "city": "Ulm"}, {"profile": np.floor(NOW - 86_400)})
    assert grouped.put(at=NOW - 60, clicks=3)[0]
    assert stored(grouped) == (
        {"age": 40.0, "city": "Ulm", "clicks": 3},
        {"profile": np.floor(NOW - 86_400), "session": np.floor(NOW - 60)},
    )
    assert grouped.put(at=NOW - 3600, age=41)[0], "older than the session, and newer than the profile"
    assert stored(grouped)[0] == {"age": 41.0, "city": "Ulm", "clicks": 3}


def test_of_two_groups_each_is_applied_by_itself(grouped: Room) -> None:
    grouped.put(at=NOW - 60, clicks=3)
    [result] = grouped.writer.write([FeatureUpdate("a", {"clicks": 1, "age": 50}, NOW - 100)])
    assert (result.applied, result.not_applied) == (False, ("session",))
    assert stored(grouped)[0] == {"age": 50.0, "city": "Ulm", "clicks": 3}


def test_what_is_wrong_with_one_group_keeps_the_other_from_being_stored(grouped: Room) -> None:
    with pytest.raises(ContractError, match="age"):
        grouped.writer.write([FeatureUpdate("new", {"clicks": 1, "city": "Bonn"})])
    assert stored_features(grouped.features, GROUPS, "new") == ({}, {})


@pytest.mark.parametrize("name", ["hour", "query"])
def test_what_is_computed_or_comes_with_requests_is_not_stored(grouped: Room, name: str) -> None:
    value = 3 if name == "hour" else "shoes"
    with pytest.raises(ContractError, match="not stored") as raised:
        grouped.put(clicks=1, **{name: value})
    assert raised.value.field == f"features.{name}"


def test_a_default_that_stands_for_nothing_is_remembered_as_such(grouped: Room) -> None:
    grouped.put("b", age=1)
    assert "city" not in stored_features(grouped.features, GROUPS, "b")[0]
    grouped.put("b", city="Bonn")
    grouped.put("b", age=2)
    assert stored_features(grouped.features, GROUPS, "b")[0] == {"age": 2.0, "city": "Bonn"}
    grouped.put("b", city=None)
    assert stored_features(grouped.features, GROUPS, "b")[0] == {"age": 2.0}


RANGED = FeatureContract.from_json(
    {"features": [{"name": "x", "dtype": "float32", "min": 0, "max": 10}, {"name": "y", "dtype": "float32"}]}
)


def test_a_value_out_of_the_contract_s_range_is_refused_and_a_stored_one_has_to_be_put_right(room: Room) -> None:
    plain = FeatureContract(tuple(replace(feature, minimum=None, maximum=None) for feature in RANGED.features))
    before, after = (FeatureWriter(room.features, room.predictions, one, keep_s=60) for one in (plain, RANGED))
    before.write([FeatureUpdate("a", {"x": 20, "y": 1})])
    with pytest.raises(ContractError, match="10") as raised:
        after.write([FeatureUpdate("a", {"x": 11})])
    assert raised.value.field == "features.x"
    with pytest.raises(ContractError, match="give it too"):
        after.write([FeatureUpdate("a", {"y": 2})])
    assert after.write([FeatureUpdate("a", {"x": 5, "y": 2})])[0].applied


def test_of_one_second_the_change_stands_and_not_the_load(grouped: Room) -> None:
    grouped.writer.write([FeatureUpdate("a", {"age": 41}, NOW - 86_400)])  # of the very second of the load
    grouped.writer.write([FeatureUpdate("a", {"city": "Bonn"}, NOW - 86_000)])
    values, times = stored_features(grouped.features, GROUPS, "a")
    assert (values["age"], values["city"]) == (41, "Bonn")
    assert times["profile"] == np.floor(NOW - 86_000)


@pytest.mark.parametrize("lacks", ["age", "clicks"])
def test_whichever_of_two_groups_is_not_whole_neither_is_stored(room: Room, lacks: str) -> None:
    names = {"age": "profile", "height": "profile", "clicks": "session", "pages": "session"}
    features = [{"name": name, "dtype": "float32", "group": group} for name, group in names.items()]
    contract = FeatureContract.from_json({"features": features, "groups": {"profile": {}, "session": {}}})
    writer = FeatureWriter(room.features, room.predictions, contract, keep_s=3600)
    with pytest.raises(ContractError, match=f"give those without a default too: {lacks}"):
        writer.write([FeatureUpdate("new", {name: 1 for name in names if name != lacks})])
    assert stored_features(room.features, contract, "new") == ({}, {})


def test_an_update_of_two_groups_is_as_of_the_older_of_what_stands_now(grouped: Room) -> None:
    grouped.writer.write([FeatureUpdate("a", {"clicks": 5}, NOW - 10)])
    [result] = grouped.writer.write([FeatureUpdate("a", {"clicks": 6, "age": 41}, NOW - 100)])
    assert (result.applied, result.not_applied, result.as_of) == (False, ("session",), np.floor(NOW - 100))


def each(room: Room, *updates: tuple[str, dict[str, Any], float | None]) -> tuple[list[bool], dict[int, str]]:
    """Store updates each on its own; return which were applied, and why others were refused."""
    written = room.writer.write_each([FeatureUpdate(*update) for update in updates])
    return written.applied.tolist(), {position: error.message for position, error in written.refused.items()}


def test_of_updates_that_are_stored_each_on_its_own_a_wrong_one_keeps_no_other_back(room: Room) -> None:
    room.features.forgotten.add("gone")
    applied, refused = each(
        room, ("a", {"x": 1}, None), ("b", {"y": 1}, None), ("c\n", {"x": 1}, None), ("d", {"n": 1}, None),
        ("gone", {"x": 1}, None), ("e", {"x": "1"}, None), ("f", {"x": 2}, NOW + 60), ("g", {"x": 3}, None),
        ("h", {}, None), ("i", [1], None),
    )  # fmt: skip
    assert applied == [True, False, False, False, False, False, False, True, False, False]
    assert sorted(refused) == [1, 2, 3, 4, 5, 6, 8, 9]
    assert "unknown feature" in refused[1]
    assert "give those without a default too: x" in refused[3]
    assert "forgotten on request" in refused[4]
    assert (room.stored("a") or {})["x"] == 1
    assert (room.stored("g") or {})["x"] == 3
    assert room.stored("gone") is None


def test_an_entity_may_come_twice_and_the_outcome_is_that_of_one_after_the_other(room: Room) -> None:
    applied, refused = each(
        room, ("a", {"x": 1}, NOW - 9), ("a", {"x": 2}, NOW - 3), ("a", {"x": 3}, NOW - 5), ("b", {"x": 1}, NOW - 9),
        ("b", {"n": 5}, NOW - 8), ("b", {"x": 4}, NOW - 7), ("c", {"x": 1}, NOW - 3), ("c", {"n": 9}, NOW - 5),
        ("d", {"x": 1}, NOW - 5), ("d", {"x": 2}, NOW - 5), ("e", {"x": 1}, NOW - 9), ("e", {"x": "2"}, NOW - 8),
    )  # fmt: skip
    assert applied == [False, True, False, True, True, True, True, False, False, True, True, False]
    assert list(refused) == [11]
    stored = {name: room.stored(name) or {} for name in "abcde"}
    assert {name: (one["x"], one["n"]) for name, one in stored.items()} == {
        "a": (2, 7), "b": (4, 5), "c": (1, 7), "d": (2, 7), "e": (1, 7),
    }  # fmt: skip


def test_updates_that_come_again_change_nothing(room: Room) -> None:
    updates = [("a", {"x": 1.0}, NOW - 9), ("b", {"x": 1.0}, NOW - 9)]
    each(room, *updates)
    room.put("a", at=NOW - 5, x=5.0)
    applied, _ = each(room, *updates)
    assert applied == [False, True]
    assert ((room.stored("a") or {})["x"], (room.stored("b") or {})["x"]) == (5.0, 1.0)


def test_no_updates_are_stored_too(room: Room) -> None:
    assert each(room) == ([], {})
