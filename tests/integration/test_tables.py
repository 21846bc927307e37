"""What every table keeps, whether in Redis 6.2, in Redis 7, in Valkey or in a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import Conflict, NotFound
from inference.redis.clients import WORKER, Client, open_client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Entry, GenerationState, Labels, Manifest, Origin, Pointer, Table
from inference.store.versions import is_on_canary_side
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import EACH_SERVER, RedisServer, find_redis_binary
from tests.support.waiting import wait_for

PRICE = (TensorSpec("price", DType.FLOAT32),)
MIXED = (
    TensorSpec("score", DType.FLOAT32),
    TensorSpec("vector", DType.FLOAT64, (3,)),
    TensorSpec("rank", DType.INT64),
    TensorSpec("good", DType.BOOL),
    TensorSpec("label", DType.STRING),
    TensorSpec("tags", DType.STRING, (2,)),
    TensorSpec("ragged", DType.FLOAT32, (-1,)),
)
#: in a cluster, in the slot of the table's pointer
RUN = "{t}:r:1"
ODD_IDS = ["a b", "a/b", '"q"', "%2F", "☃🚀", "x" * 512, "🚀" * 128, "x" * 60, "x" * 61, "0", "-1", "ключ"]


@dataclass
class Room:
    """A table and what tests need around it: telling it the state of a run."""

    table: Table
    set_run_state: Callable[[str, str], Any]

    def generation(self, values: dict[str, float], *, version: int = 1, as_of: float = 0, **more: Any) -> Manifest:
        manifest = self.table.generations.begin(
            PRICE, rows_expected=len(values), model_version=version, contract_hash="c", keep_s=3600, **more
        )
        ids = pa.array(list(values), pa.string())
        block = {"price": np.array(list(values.values()), np.float32)}
        self.table.generations.write(manifest, ids, block, np.full(len(values), as_of))
        return manifest

    def publish(self, values: dict[str, float], **more: Any) -> Manifest:
        manifest = self.generation(values, **more)
        self.table.generations.publish(manifest.number)
        return manifest

    def upsert(self, entity_id: str, value: float, *, as_of: float, computed_at: float | None = None,
               version: int = 1, keep_s: float = 3600) -> None:  # fmt: skip
        self.table.overlay.upsert(
            [entity_id], PRICE, {"price": np.array([value], np.float32)}, as_of=np.array([as_of]),
            computed_at=self.table.now() if computed_at is None else computed_at,
            model_version=version, origin=Origin.REALTIME, keep_s=keep_s,
        )  # fmt: skip

    def price(self, entity_id: str) -> float | None:
        entry = self.table.read([entity_id])[0]
        return None if entry is None else entry.values["price"]


def _redis_room(client: Client) -> Room:
    keys = Keys("{t}" if client.is_spread else "t").table(TableKind.PREDICTIONS, "m")
    table = Table(client, keys, kind=TableKind.PREDICTIONS, model="m")
    return Room(table, lambda key, state: client.hset(key, "state", state))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], RedisServer]]:
    """Start each kind of server when it is first asked for."""
    started: dict[int, RedisServer] = {}

    def server(major: int) -> RedisServer:
        if major not in started:
            binary = find_redis_binary(major)
            started[major] = RedisServer(tmp_path_factory.mktemp("redis"), binary=binary).start()
        return started[major]

    yield server
    for running in started.values():
        running.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster of primaries alone, which is there sooner."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), replicas=0)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(params=[*EACH_SERVER, pytest.param("cluster", id="cluster")])
def room(request: pytest.FixtureRequest, servers: Callable[[int], RedisServer]) -> Iterator[Room]:
    if request.param == "cluster":
        cluster: RedisCluster = request.getfixturevalue("cluster")
        cluster.empty()
        with open_client(cluster.url(), WORKER, tag="{t}") as client:
            yield _redis_room(client)
        return
    with Client.from_url(servers(request.param).url()) as client:
        client.flushall()
        yield _redis_room(client)


@pytest.fixture
def table(room: Room) -> Table:
    return room.table


# --- an empty table ------------------------------------------------------------------------------------


def test_an_empty_table_misses_and_does_not_fail(table: Table) -> None:
    assert table.pointer() == Pointer()
    assert table.read(["a", "b"]) == [None, None]
    assert table.read([]) == []
    assert table.read_block(["a"]) is None
    assert table.read_generation(["a"], 7) == [None]
    assert table.generations.manifest(7) is None
    assert table.generations.state(7) is None
    assert table.generations.all() == []
    assert table.generations.collectable() == []


# --- writing and reading -------------------------------------------------------------------------------


def test_a_generation_is_read_only_after_it_is_published(room: Room) -> None:
    manifest = room.generation({"a": 1.5})
    assert room.table.generations.state(manifest.number) is GenerationState.LOADING
    assert room.price("a") is None
    pointer = room.table.generations.publish(manifest.number)
    assert pointer.current == manifest.number
    assert room.table.generations.state(manifest.number) is GenerationState.CURRENT
    assert room.price("a") == 1.5
    assert room.price("b") is None


def test_an_entry_says_where_it_comes_from(room: Room) -> None:
    manifest = room.publish({"a": 1.5}, version=3, as_of=1000.9)
    assert room.table.read(["a"]) == [
        Entry({"price": 1.5}, 1000.0, manifest.created_at, 3, Origin.BATCH, manifest.number)
    ]


def test_any_legal_id_is_kept_apart_from_every_other(room: Room) -> None:
    room.publish({entity_id: float(i) for i, entity_id in enumerate(ODD_IDS)})
    entries = room.table.read(ODD_IDS)
    assert [entry and entry.values["price"] for entry in entries] == list(map(float, range(len(ODD_IDS))))
    room.upsert("x" * 512, 99.0, as_of=room.table.now(), version=0)
    assert room.price("x" * 512) == 99.0
    assert room.price("x" * 61) == 8.0


def test_rows_of_all_kinds_come_back_as_they_were(table: Table) -> None:
    manifest = table.generations.begin(MIXED, rows_expected=2, model_version=1, contract_hash="c", keep_s=60)
    ragged = np.empty(2, object)
    ragged[0], ragged[1] = np.array([1, 2], np.float32), np.array([], np.float32)
    block = {
        "score": np.array([0.5, -0.0], np.float32),
        "vector": np.array([[1, 2, 3], [4, 5, 6]], np.float64),
        "rank": np.array([2**62, -1]),
        "good": np.array([True, False]),
        "label": np.array(["naïve 🚀", ""], object),
        "tags": np.array([["a", "b"], ["c", ""]], object),
        "ragged": ragged,
    }
    table.generations.write(manifest, pa.array(["x", "y"]), block, np.zeros(2))
    table.generations.publish(manifest.number)
    first, second = table.read(["x", "y"])
    assert first is not None
    assert second is not None
    assert first.values == {
        "score": 0.5, "vector": [1.0, 2.0, 3.0], "rank": 2**62, "good": True,
        "label": "naïve 🚀", "tags": ["a", "b"], "ragged": [1.0, 2.0],
    }  # fmt: skip
    assert second.values["ragged"] == []
    assert second.values["good"] is False
    rows = table.read_block(["y", "nobody", "x"])
    assert rows is not None
    assert rows.found.tolist() == [True, False, True]
    assert rows.block["score"].dtype == np.float32
    assert rows.block["rank"].tolist() == [-1, 0, 2**62]
    assert rows.block["vector"].tolist() == [[4, 5, 6], [0, 0, 0], [1, 2, 3]]
    assert rows.block["label"].tolist() == ["", "", "naïve 🚀"]
    assert rows.block["tags"].tolist() == [["c", ""], ["", ""], ["a", "b"]]
    assert [value.tolist() for value in rows.block["ragged"]] == [[], [], [1.0, 2.0]]


def test_the_arrow_types_of_text_are_all_accepted(table: Table) -> None:
    for type_ in (pa.string(), pa.large_string()):
        manifest = table.generations.begin(PRICE, rows_expected=2, model_version=1, contract_hash="c", keep_s=60)
        ids = pa.array(["skipped", "a", "b"], type_).slice(1)
        table.generations.write(manifest, ids, {"price": np.ones(2, np.float32)}, np.zeros(2))
        table.generations.publish(manifest.number)
        assert table.generations.count(manifest) == 2
        assert None not in table.read(["a", "b"])


def test_many_rows_in_many_buckets_are_counted_once_each_however_often_written(room: Room) -> None:
    values = {f"id-{i}": float(i) for i in range(5000)}
    manifest = room.publish(values)
    assert manifest.buckets > 1
    assert room.table.generations.count(manifest) == 5000
    for part in (list(values)[:2000], list(values)[1000:]):
        block = {"price": np.array([values[entity_id] for entity_id in part], np.float32)}
        room.table.generations.write(manifest, pa.array(part), block, np.zeros(len(part)))
    assert room.table.generations.count(manifest) == 5000
    entries = room.table.read(list(values))
    assert [entry and entry.values["price"] for entry in entries] == list(values.values())


def test_of_rows_with_one_id_the_last_stays(table: Table) -> None:
    manifest = table.generations.begin(PRICE, rows_expected=2, model_version=1, contract_hash="c", keep_s=60)
    table.generations.write(manifest, pa.array(["a", "a"]), {"price": np.array([1, 2], np.float32)}, np.zeros(2))
    table.generations.publish(manifest.number)
    assert table.generations.count(manifest) == 1
    entry = table.read(["a", "a"])
    assert [e and e.values["price"] for e in entry] == [2.0, 2.0]


def test_an_empty_window_changes_nothing(table: Table) -> None:
    manifest = table.generations.begin(PRICE, rows_expected=0, model_version=1, contract_hash="c", keep_s=60)
    table.generations.write(manifest, pa.array([], pa.string()), {"price": np.array([], np.float32)}, np.array([]))
    assert table.generations.count(manifest) == 0


def test_a_null_id_is_refused_before_anything_is_written(table: Table) -> None:
    manifest = table.generations.begin(PRICE, rows_expected=2, model_version=1, contract_hash="c", keep_s=60)
    with pytest.raises(ValueError, match="null"):
        table.generations.write(manifest, pa.array(["a", None]), {"price": np.zeros(2, np.float32)}, np.zeros(2))
    assert table.generations.count(manifest) == 0


def test_a_time_in_the_future_is_clamped_to_the_generations_own(room: Room) -> None:
    manifest = room.publish({"a": 1.0}, as_of=room.table.now() + 5000)
    entry = room.table.read(["a"])[0]
    assert entry is not None
    assert entry.as_of == int(manifest.created_at)


def test_a_manifest_is_the_same_when_read_back(room: Room) -> None:
    manifest = room.generation({"a": 1.0}, run_id="r1")
    assert room.table.generations.manifest(manifest.number) == manifest
    assert room.table.generations.all() == [manifest]
    assert manifest.deadline == pytest.approx(manifest.created_at + 3600)


# --- generation and overlay ----------------------------------------------------------------------------


def test_a_late_batch_never_hides_a_fresher_realtime_answer(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=2000)
    room.publish({"a": 1.0, "b": 1.0}, as_of=1000)
    assert room.price("a") == 2.0
    assert room.price("b") == 1.0
    rows = room.table.read_block(["a", "b"])
    assert rows is not None
    assert rows.block["price"].tolist() == [2.0, 1.0]
    assert rows.as_of.tolist() == [2000, 1000]


def test_a_fresher_batch_row_replaces_an_older_realtime_answer(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=1000)
    room.publish({"a": 1.0}, as_of=2000)
    assert room.price("a") == 1.0


def test_of_two_answers_from_equally_old_features_the_later_computed_is_served(room: Room) -> None:
    room.table.versions.activate(1)
    manifest = room.publish({"a": 1.0, "b": 1.0}, as_of=1000)
    room.upsert("a", 2.0, as_of=1000, computed_at=manifest.created_at + 1)
    room.upsert("b", 2.0, as_of=1000, computed_at=manifest.created_at - 1)
    assert room.price("a") == 2.0
    assert room.price("b") == 1.0


def test_a_row_tells_that_it_was_computed_anew_from_older_features(room: Room) -> None:
    room.table.versions.activate(1)
    manifest = room.publish({"a": 1.0, "b": 1.0}, as_of=1000)
    room.upsert("a", 2.0, as_of=900, computed_at=manifest.created_at + 7)
    a, b = room.table.read(["a", "b"])
    assert a is not None
    assert b is not None
    assert (a.values, a.retried_at) == ({"price": 1.0}, manifest.created_at + 7)
    assert b.retried_at is None


def test_an_answer_tells_how_old_the_row_is_that_it_is_newer_than(room: Room) -> None:
    room.table.versions.activate(1)
    manifest = room.publish({"a": 1.0}, as_of=1000)
    room.upsert("a", 2.0, as_of=2000, computed_at=manifest.created_at + 7)
    room.upsert("b", 2.0, as_of=2000, computed_at=manifest.created_at + 7)
    assert [entry and entry.row_as_of for entry in room.table.read(["a", "b"])] == [1000.0, None]


def test_the_overlay_serves_before_there_is_any_generation(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=1000, computed_at=1500.25)
    assert room.table.read(["a", "b"]) == [
        Entry({"price": 2.0}, 1000.0, 1500.25, 1, Origin.REALTIME, None),
        None,
    ]
    rows = room.table.read_block(["b", "a"])
    assert rows is not None
    assert rows.found.tolist() == [False, True]


def test_an_overlay_entry_is_never_overwritten_by_an_older_one(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=2000, computed_at=3000)
    room.upsert("a", 1.0, as_of=1000, computed_at=4000)
    assert room.price("a") == 2.0
    room.upsert("a", 1.0, as_of=2000, computed_at=2999)
    assert room.price("a") == 2.0
    room.upsert("a", 3.0, as_of=2000, computed_at=3001)
    assert room.price("a") == 3.0
    room.upsert("a", 4.0, as_of=2001, computed_at=2500)
    assert room.price("a") == 4.0


def test_a_generation_moved_to_the_overlay_is_served_beside_the_current_one(room: Room) -> None:
    room.table.versions.activate(1)
    current = room.publish({"a": 1.0, "b": 2.0, "c": 3.0}, as_of=1000)
    staged = room.generation({"a": 10.0, "b": 20.0, "x" * 500: 30.0}, as_of=2000)
    room.upsert("b", 21.0, as_of=3000)
    assert room.price("a") == 1.0

    for _ in range(2):
        room.table.generations.move_to_overlay(staged.number, keep_s=3600)

    assert [room.price(i) for i in ("a", "b", "c", "x" * 500)] == [10.0, 21.0, 3.0, 30.0]
    entry = room.table.read(["a"])[0]
    assert entry == Entry({"price": 10.0}, 2000.0, staged.created_at, 1, Origin.BATCH, None, row_as_of=1000.0)
    assert room.table.pointer().current == current.number
    assert room.table.generations.collectable() == [staged.number]
    room.table.generations.collect(staged.number, sweep_after_s=0)
    assert room.price("a") == 10.0


def test_moved_rows_are_forgotten_in_time(room: Room) -> None:
    room.table.versions.activate(1)
    room.table.generations.move_to_overlay(room.generation({"a": 10.0}).number, keep_s=0.05)
    wait_for(lambda: room.price("a") is None, "the row to be forgotten", 5)


def test_only_a_generation_that_is_loading_is_moved(room: Room) -> None:
    current = room.publish({"a": 1.0})
    failed = room.generation({"a": 2.0})
    room.table.generations.discard(failed.number, GenerationState.FAILED)
    for number in (current.number, failed.number):
        with pytest.raises(Conflict, match="only a loading one can be moved"):
            room.table.generations.move_to_overlay(number, keep_s=1)
    with pytest.raises(NotFound):
        room.table.generations.move_to_overlay(99, keep_s=1)


def test_many_rows_of_any_kind_are_moved(room: Room) -> None:
    ids = [f"e{i}" for i in range(5_000)]
    staged = room.generation({entity_id: float(i) for i, entity_id in enumerate(ids)})
    room.table.versions.activate(1)
    room.table.generations.move_to_overlay(staged.number, keep_s=3600)
    assert [entry and entry.values["price"] for entry in room.table.read(ids)] == [float(i) for i in range(5_000)]


def test_an_overlay_entry_of_another_version_is_ignored_and_may_be_overwritten(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=2000, version=2)
    assert room.price("a") is None
    room.upsert("a", 1.0, as_of=1000, version=1)
    assert room.price("a") == 1.0


def test_features_have_no_version_and_are_always_read(room: Room) -> None:
    room.upsert("a", 2.0, as_of=2000, version=0)
    assert room.price("a") == 2.0


def test_overlay_entries_of_different_fields_are_each_read_with_their_own(room: Room) -> None:
    room.table.versions.activate(1)
    room.upsert("a", 2.0, as_of=2000)
    other = (TensorSpec("name", DType.STRING),)
    room.table.overlay.upsert(
        ["b"], other, {"name": np.array(["é"], object)}, as_of=np.array([1.0]), computed_at=2.0,
        model_version=1, origin=Origin.UPSERT, keep_s=60,
    )  # fmt: skip
    entries = room.table.read(["a", "b"])
    assert [entry and entry.values for entry in entries] == [{"price": 2.0}, {"name": "é"}]


def test_more_ids_than_one_script_call_takes_are_all_upserted(table: Table) -> None:
    ids = [f"id-{i}" for i in range(2500)]
    table.overlay.upsert(
        ids, PRICE, {"price": np.arange(2500, dtype=np.float32)}, as_of=np.full(2500, 1.0), computed_at=2.0,
        model_version=0, origin=Origin.UPSERT, keep_s=60,
    )  # fmt: skip
    assert [entry and entry.values["price"] for entry in table.read(ids)] == list(map(float, range(2500)))


# --- publish, discard, rollback ------------------------------------------------------------------------


def test_publishing_makes_the_current_generation_previous_and_the_previous_collectable(room: Room) -> None:
    first, second, third = (room.publish({"a": float(i)}) for i in range(3))
    pointer = room.table.pointer()
    assert (pointer.current, pointer.previous) == (third.number, second.number)
    assert room.table.generations.state(first.number) is GenerationState.COLLECTING
    assert room.table.generations.state(second.number) is GenerationState.PREVIOUS
    assert room.table.generations.collectable() == [first.number]
    entry = room.table.read_generation(["a"], second.number)[0]
    assert entry is not None
    assert (entry.values["price"], entry.generation) == (1.0, second.number)


def test_publishing_twice_is_publishing_once(room: Room) -> None:
    first = room.publish({"a": 1.0})
    second = room.publish({"a": 2.0})
    assert room.table.generations.publish(second.number) == room.table.pointer()
    assert room.table.pointer().previous == first.number


def test_only_a_loading_generation_is_published(room: Room) -> None:
    first = room.publish({"a": 1.0})
    room.publish({"a": 2.0})
    with pytest.raises(Conflict, match="previous"):
        room.table.generations.publish(first.number)
    failed = room.generation({"a": 3.0})
    room.table.generations.discard(failed.number, GenerationState.FAILED)
    with pytest.raises(Conflict, match="failed"):
        room.table.generations.publish(failed.number)
    with pytest.raises(NotFound):
        room.table.generations.publish(99)
    assert room.price("a") == 2.0


def test_a_generation_is_published_only_while_its_run_is_in_the_expected_state(room: Room) -> None:
    manifest = room.generation({"a": 1.0})
    room.set_run_state(RUN, "cancelled")
    with pytest.raises(Conflict, match="run is not running"):
        room.table.generations.publish(manifest.number, run_key=RUN, run_state="running")
    with pytest.raises(Conflict):
        room.table.generations.publish(manifest.number, run_key="{t}:r:gone", run_state="running")
    assert room.price("a") is None
    room.set_run_state(RUN, "running")
    room.table.generations.publish(manifest.number, run_key=RUN, run_state="running")
    assert room.price("a") == 1.0


def test_a_served_generation_is_not_discarded_and_a_gone_one_stays_gone(room: Room) -> None:
    first, second = room.publish({"a": 1.0}), room.publish({"a": 2.0})
    for manifest in (first, second):
        with pytest.raises(Conflict):
            room.table.generations.discard(manifest.number, GenerationState.CANCELLED)
    room.table.generations.discard(99, GenerationState.FAILED)
    assert room.table.generations.state(99) is None


def test_rollback_brings_back_the_previous_values_and_removes_a_bad_versions_answers(room: Room) -> None:
    room.table.versions.activate(1)
    good = room.publish({"a": 1.0}, version=1)
    room.table.versions.activate(2)
    bad = room.publish({"a": -1.0}, version=2)
    room.upsert("b", -2.0, as_of=room.table.now(), version=2)
    assert (room.price("a"), room.price("b")) == (-1.0, -2.0)
    pointer = room.table.generations.rollback(bad.number)
    assert pointer == Pointer(good.number, None, 1, frozenset({2}))
    assert (room.price("a"), room.price("b")) == (1.0, None)
    assert room.table.generations.collectable() == [bad.number]


def test_rollback_within_one_version_holds_nothing(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0})
    second = room.publish({"a": 2.0})
    pointer = room.table.generations.rollback(second.number)
    assert (pointer.active_version, pointer.held_versions) == (1, frozenset())


def test_rollback_also_leaves_a_newer_version_that_has_no_generation_yet(room: Room) -> None:
    room.publish({"a": 1.0})
    second = room.publish({"a": 2.0})
    room.table.versions.activate(2)
    pointer = room.table.generations.rollback(second.number)
    assert (pointer.active_version, pointer.held_versions) == (1, frozenset({2}))


def test_rolling_back_features_touches_no_version(room: Room) -> None:
    room.publish({"a": 1.0}, version=0)
    second = room.publish({"a": 2.0}, version=0)
    pointer = room.table.generations.rollback(second.number)
    assert (pointer.active_version, pointer.held_versions) == (None, frozenset())


def test_rollback_names_the_generation_it_leaves(room: Room) -> None:
    first = room.publish({"a": 1.0})
    with pytest.raises(Conflict, match="no previous"):
        room.table.generations.rollback(first.number)
    second = room.publish({"a": 2.0})
    with pytest.raises(Conflict, match="not "):
        room.table.generations.rollback(first.number)
    room.table.generations.rollback(second.number)
    with pytest.raises(Conflict):
        room.table.generations.rollback(second.number)
    assert room.price("a") == 1.0


# --- activation ----------------------------------------------------------------------------------------


def test_a_version_is_activated_forwards_only_unless_forced(table: Table) -> None:
    assert table.versions.activate(9)
    assert table.versions.activate(9)
    assert table.versions.activate(10)
    assert not table.versions.activate(9)
    assert table.pointer().active_version == 10
    assert table.versions.activate(9, force=True)
    assert table.pointer().active_version == 9


def test_a_held_version_is_not_activated_until_someone_insists(room: Room) -> None:
    room.publish({"a": 1.0}, version=1)
    bad = room.publish({"a": 1.0}, version=2)
    room.table.generations.rollback(bad.number)
    assert not room.table.versions.activate(2)
    assert room.table.versions.activate(3)
    assert room.table.versions.activate(2, force=True)
    pointer = room.table.pointer()
    assert (pointer.active_version, pointer.held_versions) == (2, frozenset())


# --- collection ----------------------------------------------------------------------------------------


def test_collection_removes_the_rows_first_and_the_manifest_after_the_second_sweep(room: Room) -> None:
    manifest = room.generation({f"id-{i}": 1.0 for i in range(500)})
    room.table.generations.discard(manifest.number, GenerationState.CANCELLED)
    assert room.table.generations.collectable() == [manifest.number]
    assert room.table.generations.collect(manifest.number, pause_s=0, buckets_per_batch=2) > 0
    assert room.table.generations.count(manifest) == 0
    assert room.table.generations.state(manifest.number) is GenerationState.COLLECTING
    assert room.table.generations.collectable() == []
    assert room.table.generations.collect(manifest.number, pause_s=0) == 0
    assert room.table.generations.manifest(manifest.number) == manifest


def test_collection_without_a_second_sweep_leaves_nothing(room: Room) -> None:
    manifest = room.generation({"a": 1.0})
    room.table.generations.discard(manifest.number, GenerationState.FAILED)
    assert room.table.generations.collect(manifest.number, pause_s=0, sweep_after_s=0) == 1
    assert room.table.generations.state(manifest.number) is None
    assert room.table.generations.all() == []
    assert room.table.generations.collect(manifest.number) == 0


def test_what_a_straggler_wrote_goes_with_the_second_sweep(room: Room) -> None:
    manifest = room.generation({"a": 1.0})
    room.table.generations.discard(manifest.number, GenerationState.FAILED)
    room.table.generations.collect(manifest.number, pause_s=0, sweep_after_s=1e-6)
    room.table.generations.write(manifest, pa.array(["late"]), {"price": np.zeros(1, np.float32)}, np.zeros(1))
    assert room.table.generations.collectable() == [manifest.number]
    assert room.table.generations.collect(manifest.number, pause_s=0) == 1
    assert room.table.generations.count(manifest) == 0
    assert room.table.generations.manifest(manifest.number) is None


def test_what_is_served_or_being_written_is_not_collected(room: Room) -> None:
    first, second, third = room.publish({"a": 1.0}), room.publish({"a": 2.0}), room.generation({"a": 3.0})
    for manifest in (first, second, third):
        with pytest.raises(Conflict):
            room.table.generations.collect(manifest.number)
    assert room.table.generations.collectable() == []


# --- labels --------------------------------------------------------------------------------------------

#: entities of the model "m" on the canary's side at a share of a tenth, and of none
ON_ITS_SIDE = next(f"e{i}" for i in range(1000) if is_on_canary_side("m", f"e{i}", 0.1))
ON_NO_SIDE = next(f"e{i}" for i in range(1000) if not is_on_canary_side("m", f"e{i}", 0.1))


def test_a_canarys_answers_are_read_for_entities_on_its_side_only_and_vanish_with_it(room: Room) -> None:
    room.table.versions.activate(1)
    room.table.versions.label("canary", 2, share=0.1)
    for entity_id in (ON_ITS_SIDE, ON_NO_SIDE):
        room.upsert(entity_id, 2.0, as_of=room.table.now(), version=2)
    assert (room.price(ON_ITS_SIDE), room.price(ON_NO_SIDE)) == (2.0, None)
    room.table.versions.label("canary", 2, share=1.0)
    assert room.price(ON_NO_SIDE) == 2.0
    room.table.versions.label("canary", 3, share=1.0)
    assert room.price(ON_ITS_SIDE) is None
    room.table.versions.label("canary", 2, share=1.0)
    room.table.versions.label("canary", None)
    assert (room.price(ON_ITS_SIDE), room.price(ON_NO_SIDE)) == (None, None)
    assert room.table.pointer().labels == Labels()


def test_a_canarys_answer_and_a_generations_row_are_compared_by_their_age(room: Room) -> None:
    room.table.versions.activate(1)
    room.table.versions.label("canary", 2, share=1.0)
    now = room.table.now()
    room.upsert("older", 2.0, as_of=now - 100, version=2)
    room.upsert("newer", 2.0, as_of=now, version=2)
    room.publish({"older": 1.0, "newer": 1.0}, as_of=now - 50)
    assert (room.price("older"), room.price("newer")) == (1.0, 2.0)
    block = room.table.read_block(["older", "newer"])
    assert block is not None
    assert block.block["price"].tolist() == [1.0, 2.0]


def test_labels_say_which_version_may_be_activated(room: Room) -> None:
    table = room.table
    table.versions.activate(3)
    table.versions.label("canary", 4, share=0.5)
    assert not table.versions.activate(4)
    table.versions.label("stable", 3)
    assert not table.versions.activate(5)
    table.versions.label("stable", 2)
    assert table.versions.activate(2)  # an older one too: somebody said so
    assert table.pointer().labels == Labels({"canary": 4, "stable": 2}, 0.5)
    table.versions.label("stable", 4)
    assert table.pointer().labels == Labels({"stable": 4})  # its trial is over
    assert table.versions.activate(4)
    assert table.versions.activate(5, force=True)
    assert table.pointer().labels == Labels({"stable": 5})


def test_insisting_on_the_canary_ends_its_trial(room: Room) -> None:
    room.table.versions.activate(1)
    room.table.versions.label("canary", 2, share=0.5)
    room.table.versions.label("other", 1)
    assert room.table.versions.activate(2, force=True)
    assert room.table.pointer().labels == Labels({"other": 1})


def test_a_rollback_takes_the_label_stable_along(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0}, version=1)
    room.table.versions.label("stable", 2)
    room.table.versions.label("canary", 1, share=0.5)
    room.table.versions.activate(2)
    bad = room.publish({"a": 2.0}, version=2)
    pointer = room.table.generations.rollback(bad.number)
    assert (pointer.active_version, pointer.labels) == (1, Labels({"stable": 1}))
    assert not room.table.versions.activate(2)
    room.table.versions.label("stable", 2)
    assert room.table.pointer().held_versions == frozenset()


# --- changes of features -------------------------------------------------------------------------------


def replace(room: Room, entity_id: str, value: float, *, at: float, expected: bytes | None) -> bool:
    block = {"price": np.array([value], np.float32)}
    [done] = room.table.overlay.replace(
        [entity_id], PRICE, block, known_at=np.array([at]), expected=[expected], keep_s=3600
    )
    return done


def test_a_change_is_stored_only_over_what_was_read_for_it(room: Room) -> None:
    room.publish({"a": 1.0}, version=0, as_of=50)
    seen = room.table.read_for_change(["a", "nobody"])
    assert seen is not None
    assert (seen.overlay, seen.rows.found.tolist(), seen.rows.as_of[0]) == ((None, None), [True, False], 50)
    assert seen.fields == PRICE
    assert replace(room, "a", 2.0, at=60.25, expected=None)
    assert not replace(room, "a", 3.0, at=61, expected=None), "another one was quicker"
    assert room.price("a") == 2.0
    seen = room.table.read_for_change(["a"])
    assert seen is not None
    assert (seen.rows.as_of[0], seen.known_at[0]) == (60, 60.25)
    assert replace(room, "a", 3.0, at=61, expected=seen.overlay[0])
    assert room.price("a") == 3.0


def test_nothing_was_read_where_nothing_is_stored(room: Room) -> None:
    assert room.table.read_for_change(["a"]) is None
    assert replace(room, "a", 2.0, at=60, expected=None)
    assert room.price("a") == 2.0


def outdate(room: Room, entity_id: str, changed_at: float) -> None:
    room.table.overlay.outdate([entity_id], changed_at=np.array([changed_at]), keep_s=3600)


def test_an_answer_computed_before_the_features_changed_is_gone_and_stays_so(room: Room) -> None:
    room.table.versions.activate(1)
    before = room.table.now()
    room.upsert("a", 1.0, as_of=100, computed_at=before)
    outdate(room, "a", 100)
    assert room.price("a") is None
    room.upsert("a", 1.5, as_of=10_000, computed_at=before)
    assert room.price("a") is None, "a worker that had read the old features stored its answer late"
    room.upsert("a", 2.0, as_of=100, computed_at=room.table.now() + 1)
    assert room.price("a") == 2.0


def test_what_a_run_computed_is_outdated_by_newer_features_only(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0, "b": 1.0, "c": 1.0}, as_of=100)
    outdate(room, "a", 101)
    outdate(room, "b", 100)
    outdate(room, "a", 7)
    found = room.table.read(["a", "b", "c"])
    assert [entry is not None and entry.outdated for entry in found] == [True, False, False]
    assert [entry and entry.retried_at for entry in found] == [None] * 3, "nobody has computed it anew"
    room.publish({"a": 2.0}, as_of=102)
    newer = room.table.read(["a"])[0]
    assert newer is not None
    assert (newer.values["price"], newer.outdated) == (2.0, False)


def test_what_a_run_computed_in_the_very_second_of_a_change_is_outdated(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0, "b": 1.0}, as_of=100.2)
    outdate(room, "a", 100.7)
    outdate(room, "b", 99.9)
    found = room.table.read(["a", "b"])
    assert [entry is not None and entry.outdated for entry in found] == [True, False]
    room.upsert("a", 2.0, as_of=100.7, computed_at=room.table.now() + 1)
    entry = room.table.read(["a"])[0]
    assert entry is not None
    assert (entry.values["price"], entry.outdated) == (2.0, False)


def test_an_answer_computed_since_a_change_is_served_though_a_part_of_its_features_is_older(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0, "b": 1.0}, as_of=100)
    outdate(room, "a", 105)
    for entity_id in ("a", "b"):
        room.upsert(entity_id, 2.0, as_of=90, computed_at=room.table.now() + 1)
    assert (room.price("a"), room.price("b")) == (2.0, 1.0)
    room.upsert("a", 3.0, as_of=90, computed_at=room.table.now() + 2)
    assert room.price("a") == 3.0
    entry = room.table.read(["a"])[0]
    assert entry is not None
    assert (entry.origin, entry.as_of) == (Origin.REALTIME, 90)


def test_an_outdated_entity_takes_no_older_row_of_a_partial_run(room: Room) -> None:
    room.table.versions.activate(1)
    outdate(room, "a", 100)
    older = room.generation({"a": 1.0}, as_of=99)
    room.table.generations.move_to_overlay(older.number, keep_s=3600)
    assert room.price("a") is None
    newer = room.generation({"a": 2.0}, as_of=100)
    room.table.generations.move_to_overlay(newer.number, keep_s=3600)
    assert room.price("a") == 2.0


def test_parts_stand_beside_the_rows_with_fields_of_their_own_and_are_read_at_once(room: Room) -> None:
    assert room.table.read_blocks(["a"], ["x"]) == [None, None]
    room.publish({"a": 1.0, "b": 2.0}, as_of=100)
    fields = (TensorSpec("label", DType.STRING),)
    room.table.part("x").overlay.upsert(
        ["b"], fields, {"label": np.array(["new"], object)}, as_of=np.array([50.0]),
        computed_at=60.0, model_version=0, origin=Origin.UPSERT, keep_s=3600,
    )  # fmt: skip
    for _ in range(2):  # with and without what a reader remembers
        whole, x, y = room.table.read_blocks(["b", "a"], ["x", "y"])
        assert whole is not None
        assert x is not None
        assert y is None
        assert (whole.block["price"].tolist(), whole.as_of.tolist()) == ([2.0, 1.0], [100, 100])
        assert (x.block["label"].tolist(), x.found.tolist(), x.as_of.tolist()) == (["new", ""], [True, False], [50, 0])
    assert room.table.part("y").read_block(["b"]) is None
    assert [entry and entry.values for entry in room.table.read(["b"])] == [{"price": 2.0}]


def test_a_run_that_begins_after_an_answer_was_computed_since_a_change_is_served(room: Room) -> None:
    room.table.versions.activate(1)
    for entity_id in ("a", "b"):
        outdate(room, entity_id, 105)
        room.upsert(entity_id, 2.0, as_of=90)
    assert (room.price("a"), room.price("b")) == (2.0, 2.0)
    room.publish({"a": 3.0, "b": 3.0}, as_of=110)
    assert (room.price("a"), room.price("b")) == (3.0, 3.0)
    rows = room.table.read_block(["a", "b"])
    assert rows is not None
    assert rows.block["price"].tolist() == [3.0, 3.0]
    room.upsert("b", 4.0, as_of=90, computed_at=room.table.now() + 1)
    assert (room.price("a"), room.price("b")) == (3.0, 4.0)


# --- the value itself, and several of each ---


def test_of_two_answers_that_are_equally_new_the_last_written_stays(room: Room) -> None:
    room.table.versions.activate(1)
    for value in (1.0, 2.0):
        room.upsert("a", value, as_of=5, computed_at=10)
    assert room.price("a") == 2.0
    room.upsert("a", 3.0, as_of=5, computed_at=9.999)
    assert room.price("a") == 2.0
    room.upsert("a", 4.0, as_of=4, computed_at=11)
    assert room.price("a") == 2.0


def test_an_answer_that_is_as_new_as_the_row_is_served(room: Room) -> None:
    room.table.versions.activate(1)
    manifest = room.publish({"a": 1.0, "b": 1.0, "c": 1.0}, as_of=100)
    room.upsert("a", 2.0, as_of=100, computed_at=manifest.created_at)
    room.upsert("b", 2.0, as_of=100, computed_at=manifest.created_at - 0.001)
    room.upsert("c", 2.0, as_of=99, computed_at=manifest.created_at + 60)
    assert [room.price(entity_id) for entity_id in "abc"] == [2.0, 1.0, 1.0]
    rows = room.table.read_block(["a", "b", "c"])
    assert rows is not None
    assert (rows.block["price"].tolist(), rows.as_of.tolist()) == ([2.0, 1.0, 1.0], [100, 100, 100])


def test_an_answer_of_the_very_instant_of_a_change_stays(room: Room) -> None:
    room.table.versions.activate(1)
    outdate(room, "a", 100)
    noted_at = room.table.now()
    room.upsert("a", 2.0, as_of=1, computed_at=noted_at)
    assert room.price("a") == 2.0


def test_a_note_keeps_the_newest_of_several_changes(room: Room) -> None:
    room.table.versions.activate(1)
    room.publish({"a": 1.0, "b": 1.0}, as_of=150)
    for changed_at in (200, 100):
        outdate(room, "a", changed_at)
    for changed_at in (100, 150):
        outdate(room, "b", changed_at)
    assert [entry is not None and entry.outdated for entry in room.table.read(["a", "b"])] == [True, False]


def test_each_of_many_generations_has_its_own_state_and_only_two_are_kept(room: Room) -> None:
    numbers = [room.publish({"a": float(value)}).number for value in range(4)]
    loading = room.generation({"a": 9.0}).number
    states = [room.table.generations.state(number) for number in [*numbers, loading]]
    assert states == [
        GenerationState.COLLECTING, GenerationState.COLLECTING, GenerationState.PREVIOUS, GenerationState.CURRENT,
        GenerationState.LOADING,
    ]  # fmt: skip
    assert room.table.generations.collectable() == numbers[:2]
    assert [manifest.number for manifest in room.table.generations.all()] == [*numbers, loading]
    assert (room.table.pointer().current, room.table.pointer().previous) == (numbers[3], numbers[2])
    assert [row and row.values["price"] for number in numbers for row in room.table.read_generation(["a"], number)] == [
        0.0, 1.0, 2.0, 3.0,
    ]  # fmt: skip


def test_every_version_that_was_left_is_held_and_insisting_on_one_frees_that_one(room: Room) -> None:
    for version in (1, 2):
        room.table.versions.activate(version)
        room.publish({"a": float(version)}, version=version)
    room.table.versions.activate(3)
    pointer = room.table.generations.rollback(room.table.pointer().current or 0)
    assert (pointer.active_version, pointer.held_versions) == (1, {2, 3})
    assert not room.table.versions.activate(2)
    assert not room.table.versions.activate(3)
    assert room.table.versions.activate(4)
    assert room.table.versions.activate(2, force=True)
    assert (room.table.pointer().active_version, room.table.pointer().held_versions) == (2, {3})


def test_a_label_says_nothing_of_the_others(room: Room) -> None:
    for name, version in (("old", 1), ("stable", 2), ("canary", 3)):
        room.table.versions.label(name, version, share=0.25)
    room.table.versions.label("old", 4)
    assert room.table.pointer().labels == Labels({"old": 4, "stable": 2, "canary": 3}, 0.25)
    room.table.versions.label("old", None)
    assert room.table.pointer().labels == Labels({"stable": 2, "canary": 3}, 0.25)
    room.table.versions.label("canary", None)
    assert room.table.pointer().labels == Labels({"stable": 2})
