"""A delta run scores what changed, and publishes what a full run would: over a real Redis, rows come and go."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState, RunView, Trigger
from inference.batch.active_set import ActiveSet, ActiveSets
from inference.batch.ledger import Ledger
from inference.errors import BadInput, Conflict
from inference.models import ModelRegistry
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.sources import hash_ids
from inference.store import Manifest, Origin
from inference.store.codec import stored_id
from inference.store.generations import Generations
from tasks.maintenance import start_run
from tests.integration.test_runs import KEYS, World, failed_gates, record
from tests.support.leaks import leaked_keys
from tests.support.plain_models import write_slow_sum_model
from tests.support.runs_rig import CALL_S, MODEL, Rig
from tests.support.stack import run_cli_json, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TABLE = KEYS.table(TableKind.PREDICTIONS, "m")
DAY = 1_700_000_000


class DeltaWorld(World):
    """A deployment whose model keeps vectors; `dated`: its table has event times."""

    dated = False
    fallbacks: Sequence[dict[str, Any]] = ()

    def configure(self, **batch: Any) -> None:
        own = {
            "rows_per_chunk": 40, "micro_batch_rows": 16, "max_in_flight": 9, "delta": True, "max_drift": 1e3, **batch,
        }  # fmt: skip
        model = ModelSettings(
            path=self.root / "model",
            features=str(self.root / "t.parquet"),
            event_time_column="at" if self.dated else None,
            batch=BatchSettings(**own),
            fallbacks=self.fallbacks,
        )
        self.settings = Settings(models={"m": model})
        self.settings._root = self.root
        self.runs = self.make_runs()

    def write(self, rows: dict[str, tuple[float | None, int | None]]) -> None:
        """Write the table: id → value and event time, in this order."""
        at = pa.array([None if at is None else at * 10**6 for _, at in rows.values()], pa.timestamp("us", "UTC"))
        table = {"entity_id": list(rows), "x": pa.array([value for value, _ in rows.values()], pa.float32()), "at": at}
        pq.write_table(pa.table(table), self.root / "t.parquet", row_group_size=30)

    def publish(self, *, delta: bool = True, **kwargs: Any) -> RunView:
        done = self.finish(self.request(delta=delta, **kwargs))
        assert (done.state, done.error) == (RunState.PUBLISHED, None)
        assert leaked_keys(self.client, "t") == []
        return done

    def stored(self, generation: int | None) -> dict[tuple[str, bytes], bytes]:
        """Bucket and stored id → row, as it lies in Redis, with the age that readers take it for."""
        manifest = self.table.generations.manifest(generation or 0)
        assert manifest is not None
        start, age = f"{TABLE.generation(manifest.number)}:", manifest.rows_as_of
        of_all = None if age is None else age.to_bytes(4, "little")
        keys: Any = self.client.keys(f"{start}*")
        assert all(self.client.ttl(key) > 0 for key in keys)
        return {
            (key.decode().removeprefix(start), field): row if of_all is None else of_all + row[4:]
            for key in keys
            for field, row in self.client.hgetall(key).items()
        }

    def parts(self, run: RunView) -> dict[str, tuple[float, int]]:
        rows = pq.read_table(self.root / "out" / run.run_id).to_pylist()
        return {row["entity_id"]: (row["y"], int(row["as_of"].timestamp())) for row in rows}


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> DeltaWorld:
    world = DeltaWorld(redis_client, tmp_path)
    world.table.versions.activate(1)
    return world


def some_rows(count: int, rng: random.Random) -> dict[str, tuple[float | None, int | None]]:
    return {f"e{i}": (rng.random(), rng.choice([None, DAY + i])) for i in range(count)}


def changed(
    rows: dict[str, tuple[float | None, int | None]], rng: random.Random
) -> dict[str, tuple[float | None, int | None]]:
    """Some rows leave, come, move, change their values, or only their times."""
    kept = {name: row for name, row in rows.items() if rng.random() > 0.05}
    for name in rng.sample(list(kept), 12):
        kept[name] = (rng.random(), kept[name][1])
    for name in rng.sample(list(kept), 12):
        kept[name] = (kept[name][0], rng.choice([None, DAY + rng.randrange(10**6), 2 * 10**9]))
    kept |= {f"new{rng.random()}": (rng.random(), DAY) for _ in range(rng.randrange(9))}
    kept["long" * 40] = (rng.random(), DAY)
    order = list(kept)
    if rng.random() < 0.5:
        rng.shuffle(order)
    return {name: kept[name] for name in order}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dated", [False, True])
def test_a_delta_run_stores_what_a_full_run_would(world: DeltaWorld, dated: bool, seed: int) -> None:
    rng = random.Random(seed)
    world.dated = dated
    world.configure(parquet_path="out")
    rows = some_rows(300, rng)
    world.write(rows)
    first = world.publish()
    assert (first.base_run, first.full_reason, first.rows_carried) == (None, "no generation serves yet", None)
    before = world.stored(first.generation)

    for _ in range(2):
        rows, old = changed(rows, rng), rows
        world.write(rows)
        asked = world.model.rows
        delta = world.publish()
        read = dict(zip(rows, world.table.read(list(rows)), strict=True))
        block = world.table.read_block(list(rows))
        scored = world.model.rows - asked
        same = [name for name in rows if name in old and rows[name][0] == old[name][0]]
        assert (delta.full_reason, delta.rows_carried, delta.rows_rescored) == (None, len(same), scored)
        assert scored == len(rows) - len(same)
        assert delta.rows_removed == len(set(old) - set(rows))

        full = world.publish(delta=False)
        ours, theirs = world.stored(delta.generation), world.stored(full.generation)
        assert ours.keys() == theirs.keys()
        assert {place: row[4:] for place, row in ours.items()} == {place: row[4:] for place, row in theirs.items()}
        values = {field: row[4:] for (_, field), row in before.items()}
        assert all(
            row[4:] == values[field] for (_, field), row in ours.items() if field in {stored_id(name) for name in same}
        )
        ages = {field: int.from_bytes(row[:4], "little") for (_, field), row in ours.items()}
        begun = world.runs._ledger.load(delta.run_id).created_at
        for name, (_, at) in rows.items():
            expected = begun if at is None or not dated else min(at, manifest_time(world, delta))
            assert ages[stored_id(name)] == int(expected)
            assert (entry := read[name]) is not None
            assert entry.as_of == int(expected)
        assert block is not None
        assert block.as_of.tolist() == [ages[stored_id(name)] for name in rows]
        assert {name: value for name, (value, _) in world.parts(delta).items()} == {
            name: value for name, (value, _) in world.parts(full).items()
        }
        assert len(world.parts(delta)) == len(rows)
        before = theirs


def manifest_time(world: DeltaWorld, run: RunView) -> float:
    manifest = world.table.generations.manifest(run.generation or 0)
    assert manifest is not None
    return manifest.created_at


def numbered(count: int, **changes: float) -> dict[str, tuple[float | None, int | None]]:
    """Rows e0 … with their number as value, and some other values."""
    return {f"e{i}": (changes.get(f"e{i}", float(i)), DAY) for i in range(count)}


def test_a_delta_run_that_dies_anywhere_goes_on_and_can_be_rolled_back(
    world: DeltaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.configure()
    world.write(numbered(200))
    world.publish()
    rows = numbered(190, e3=-3.0)
    world.write(rows)
    run = world.request(delta=True)

    class Killed(BaseException):
        """What a killed process does not get to handle."""

    # while it copies
    copy = Generations.copy

    def half(self: Generations, base: Manifest, manifest: Manifest, **kwargs: Any) -> None:
        copy(self, replace(base, buckets=1), replace(manifest, buckets=1), **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Generations, "copy", half)
        with pytest.raises(Killed):
            world.runs.reconcile("m")
    world.client.delete(KEYS.reconciler("m"))  # its lease runs out
    assert world.answers("e3") == [6.0]

    # before its chunks, and after their writes
    world.runs.reconcile("m")
    finish = Ledger.finish
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.runs.score(*world.queue[0])
    world.client.delete(KEYS.run_part(run.run_id, "claims"))
    assert Ledger.finish is finish
    world.work()

    # between the removal of rows and the publication
    with monkeypatch.context() as patch:
        patch.setattr(Generations, "publish", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.runs.reconcile("m")
    world.client.delete(KEYS.reconciler("m"))
    assert world.answers("e3", "e195") == [6.0, 390.0]

    done = world.finish(run)
    assert (done.state, done.error) == (RunState.PUBLISHED, None)
    assert (done.rows_carried, done.rows_rescored, done.rows_removed) == (189, 1, 10)
    assert world.answers("e3", "e4", "e195") == [-6.0, 8.0, None]
    assert leaked_keys(world.client, "t") == []
    assert {manifest.number for manifest in world.table.generations.all()} >= {1, done.generation}

    world.runs.rollback("m")
    assert world.answers("e3", "e195") == [6.0, 390.0]
    again = world.publish()
    assert (again.full_reason, again.rows_carried) == (None, 189)
    assert world.answers("e3", "e195") == [-6.0, None]


def test_a_rollback_in_mid_run_ends_the_run_in_one_line_and_serves_nothing_of_it(world: DeltaWorld) -> None:
    world.configure()
    for first in (1.0, 2.0):
        world.write(numbered(100, e0=first))
        world.publish(delta=False)
    world.write(numbered(100, e1=9.0))
    run = world.request(delta=True)
    world.runs.reconcile("m")
    world.runs.rollback("m")
    done = world.finish(run)

    assert done.state is RunState.FAILED
    assert done.error == "not published: generation 2, whose rows it carries over, serves no more: start a new run"
    assert world.answers("e0", "e1") == [2.0, 2.0]
    with pytest.raises(Conflict, match="generation 2, whose rows it carries over, serves no more"):
        world.runs.resume(run.run_id)
    assert world.publish().rows_rescored == 2
    assert world.answers("e0", "e1") == [0.0, 18.0]


def test_what_a_delta_run_cannot_build_on_makes_it_a_full_run_and_says_so(world: DeltaWorld) -> None:
    world.configure(delta=False)
    world.write(numbered(100))
    world.publish(delta=False)
    assert "kept no digests" in (world.publish().full_reason or "")  # and keeps them itself
    assert world.publish().full_reason is None

    registry = ModelRegistry(world.client, KEYS)
    registry.put("m", replace(record(), fingerprint="g"))
    assert "files of the model version have changed" in (world.publish().full_reason or "")
    registry.put("m", replace(record(2), fingerprint="g"))
    registry.activate("m", 2)
    assert "was of model version 1" in (world.publish().full_reason or "")

    world.write(numbered(400))
    grown = world.publish()
    assert "over a tenth more or fewer rows" in (grown.full_reason or "")
    assert world.answers("e399") == [798.0]

    [damaged] = (world.root / ".forecache/delta/m" / grown.run_id).iterdir()
    damaged.write_bytes(b"\0" * 100)
    assert "cannot be read" in (world.publish().full_reason or "")
    details = world.runs.details(world.publish().run_id)
    assert (details.delta, details.full_reason, details.rows_carried) == (True, None, 400)


def test_scheduled_runs_are_delta_runs_but_every_nth_is_full(world: DeltaWorld) -> None:
    world.configure(full_every=3)
    world.write(numbered(100))
    runs = [world.finish(world.runs.request("m", trigger=Trigger.BEAT, slot=str(n), delta=True)) for n in range(6)]
    assert [run.full_reason is None for run in runs] == [False, True, True, False, True, True]
    assert runs[3].full_reason == "full_every is 3, and it follows 2 delta runs"
    folders = sorted(path.name for path in (world.root / ".forecache/delta/m").iterdir())
    assert folders == sorted(run.run_id for run in runs[-2:])  # of the generation that serves, and of the one before


@pytest.mark.parametrize(("trigger", "is_delta"), [("beat", True), ("api", False)])
def test_only_the_schedule_asks_for_delta_runs_by_itself(world: DeltaWorld, trigger: str, is_delta: bool) -> None:
    world.configure(schedule="@daily")
    deployment = SimpleNamespace(settings=world.settings, runs=world.runs, broker=SimpleNamespace(hurry=lambda: None))
    started = type(start_run._get_current_object()).run(
        SimpleNamespace(deployment=deployment, request={}), "m", trigger
    )
    assert started["delta"] is is_delta


def test_rows_that_cannot_be_scored_leave_as_in_a_full_run_and_gates_see_all_rows(world: DeltaWorld) -> None:
    world.configure(max_quarantined_fraction=0.5, max_drift=0.5, rows_per_chunk=2000, micro_batch_rows=500)
    world.write(numbered(4000))
    world.publish()
    world.write(numbered(4000) | {"e1": (None, DAY), "e2": (float("inf"), DAY)})
    done = world.publish()
    assert (done.rows_quarantined, done.rows_carried, done.rows_rescored, done.rows_removed) == (2, 3998, 0, 2)
    assert world.answers("e1", "e2", "e3") == [None, None, 6.0]
    assert failed_gates(done) == []
    [drift] = [gate for gate in done.gates if gate.name == "drift"]
    assert "population stability index" in drift.detail

    world.write({name: (value if i % 2 else 1e6, at) for i, (name, (value, at)) in enumerate(numbered(4000).items())})
    moved = world.finish(world.request(delta=True))
    assert (moved.state, failed_gates(moved)) == (RunState.FAILED, ["drift"])
    assert world.answers("e4") == [8.0]


def test_parquet_alone_carries_over_from_the_parts_of_the_run_before(world: DeltaWorld) -> None:
    world.configure(prediction_table=False, parquet_path="out")
    rows = numbered(200)
    world.write(rows)
    world.publish()
    asked = world.model.rows
    world.write(dict(reversed(list(numbered(210, e7=-7.0).items()))))
    done = world.publish()
    assert (world.model.rows - asked, done.rows_carried, done.rows_removed) == (11, 199, 0)
    assert {name: y for name, (y, _) in world.parts(done).items()} == {
        f"e{i}": -14.0 if i == 7 else 2.0 * i for i in range(210)
    }

    for part in (world.root / "out" / done.run_id).glob("_SUCCESS"):
        part.unlink()
    assert "the Parquet parts of run" in (world.publish().full_reason or "")


def test_features_are_stored_whole_since_equal_vectors_do_not_mean_equal_features(world: DeltaWorld) -> None:
    world.configure(feature_table=True)
    world.write(numbered(100))
    world.publish()
    world.write(numbered(100, e5=-5.0))
    done = world.publish()
    assert (done.rows_carried, done.rows_rescored) == (99, 1)
    features = world.table_of(TableKind.FEATURES, "m")
    assert [entry and entry.values["x"] for entry in features.read(["e5", "e6"])] == [-5.0, 6.0]
    assert failed_gates(done) == []


def test_a_worker_that_does_not_see_the_shared_folder_ends_the_run_in_one_line(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(100))
    first = world.publish()
    run = world.request(delta=True)
    world.runs.reconcile("m")
    (world.root / ".forecache/delta/m" / first.run_id / "vectors.arrow").unlink()
    done = world.finish(run)
    assert done.state is RunState.FAILED
    assert "delta_path must be a folder that all batch and maintenance workers share" in (done.error or "")


def test_rows_that_redis_lost_are_scored_anew_and_the_run_says_so(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(200))
    first = world.publish()
    world.client.delete(TABLE.bucket(first.generation or 0, 0))
    done = world.publish()
    assert "rows of run" in (done.full_reason or "")
    assert (done.full_reason or "").endswith(" left of 200")
    assert world.answers(*(f"e{i}" for i in range(200))) == [2.0 * i for i in range(200)]
    assert world.publish().full_reason is None


@pytest.mark.parametrize("lost", ["of what serves", "of the copy"])
def test_rows_that_redis_loses_in_mid_run_are_not_missing_in_what_serves(world: DeltaWorld, lost: str) -> None:
    world.configure()
    world.write(numbered(200))
    first = world.publish()
    world.write(numbered(200, e3=-3.0))
    run = world.request(delta=True)
    world.runs.reconcile("m")
    generation = first.generation if lost == "of what serves" else world.runs.show(run.run_id).generation
    for bucket in range(2):
        world.client.delete(TABLE.bucket(generation or 0, bucket))
    done = world.finish(run)
    if lost == "of what serves":
        assert (done.state, world.answers("e3", "e4", "e199")) == (RunState.PUBLISHED, [-6.0, 8.0, 398.0])
        world.runs.rollback("m")  # to the generation with lost rows
        assert " left of 200" in (world.publish().full_reason or "")
    else:
        assert (done.state, failed_gates(done)) == (RunState.FAILED, ["coverage"])
        assert world.publish().full_reason is None  # what serves is whole
    assert world.answers("e3", "e4", "e199") == [-6.0, 8.0, 398.0]


def test_a_lost_folder_makes_one_full_run(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(50))
    world.publish()
    shutil.rmtree(world.root / ".forecache/delta")
    assert "kept no digests, or they were lost" in (world.publish().full_reason or "")
    assert world.publish().rows_carried == 50


def test_a_folder_without_room_costs_a_full_run_nothing_and_is_named_by_a_delta_run(
    world: DeltaWorld,
) -> None:
    world.configure()
    world.write(numbered(50))
    (world.root / ".forecache").mkdir(exist_ok=True)
    (world.root / ".forecache/delta").write_text("a file")
    done = world.finish(world.request(delta=True))
    assert (done.state, world.answers("e49")) == (RunState.PUBLISHED, [98.0])
    assert (done.error or "").startswith("the next delta run will score all rows: ")
    assert "delta_path must be a folder" in (done.error or "")
    assert "kept no digests" in (world.finish(world.request(delta=True)).full_reason or "")

    (world.root / ".forecache/delta").unlink()
    world.publish()
    run = world.request(delta=True)
    world.runs.reconcile("m")
    (world.root / ".forecache/delta/m" / run.run_id).write_text("in the way")
    world.work(1)
    assert "delta_path cannot be written to: " in (world.runs.details(run.run_id).last_error or "")
    (world.root / ".forecache/delta/m" / run.run_id).unlink()
    assert world.runs.cancel(run.run_id).state is RunState.CANCELLED


def test_copies_merges_and_carried_rows_give_way_to_requests(
    world: DeltaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str | None] = []

    class Yields:
        def __init__(self, *_: object) -> None: ...

        def give_way(self, device: str | None = None) -> None:
            devices.append(device)

    monkeypatch.setattr("inference.batch.runs.Yielding", Yields)
    world.configure()
    world.write(numbered(50))
    world.publish()
    assert devices.count("cpu-1") == 4  # its model calls
    world.write(numbered(40))
    run = world.request(delta=True)
    steps = []
    for step in (lambda: world.runs.reconcile("m"), world.work, lambda: world.runs.reconcile("m")):
        devices.clear()
        step()
        steps.append((len(devices), set(devices)))
    assert world.runs.show(run.run_id).state is RunState.PUBLISHED
    # a piece of the copy; two chunks without a model call; a piece of the merge, and a removal
    assert steps == [(1, {None}), (2, {None}), (2, {None})]


@pytest.mark.parametrize("way", [{"feature_table": True}, {"parquet_path": "out"}])
def test_a_delta_run_of_another_active_set_stores_what_a_full_run_would(
    world: DeltaWorld, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    world.fallbacks = [{"kind": "function", "name": "f", "function": "package.module:name"}]
    world.configure(entities="asked within 3d", new_entities=False, min_size_ratio=0.0, **way)
    chosen: list[range] = [range(60), range(30, 80)]

    def choose(_: object, name: str, model: ModelSettings, **kwargs: Any) -> ActiveSet:
        ids = filters.hashes(pa.array([f"e{i}" for i in chosen[0]]))
        return ActiveSet(model.batch.entities, filters=filters, chooses=lambda found: np.isin(found, ids))

    filters: Any = SimpleNamespace(hashes=lambda ids: hash_ids(ids), history=lambda hashes: hashes)
    monkeypatch.setattr(ActiveSets, "open", choose)
    world.write(numbered(100))
    world.publish()
    del chosen[0]
    world.write(numbered(100, e40=-1.0, e99=-1.0))
    done = world.publish()
    assert (done.full_reason, done.rows_carried, done.rows_rescored, done.rows_removed) == (None, 29, 21, 30)
    ours, theirs = (world.stored(run.generation) for run in (done, world.publish(delta=False)))
    assert {place: row[4:] for place, row in ours.items()} == {place: row[4:] for place, row in theirs.items()}


def test_carried_rows_are_newer_than_answers_of_the_time_before(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(50))
    first = world.publish()
    begun = world.runs._ledger.load(first.run_id).created_at
    answer: Any = {"y": np.array([5.0], np.float32)}
    for name, at in (("e1", begun + 1), ("e2", begun + 3600)):  # computed on demand
        world.table.overlay.upsert(
            [name], record().signature.outputs, answer, as_of=np.array([at]), computed_at=at,
            model_version=1, origin=Origin.REALTIME, keep_s=7200,
        )  # fmt: skip
    assert world.answers("e1", "e2") == [5.0, 5.0]
    time.sleep(max(0.0, int(begun + 2) + 0.01 - time.time()))  # ages are whole seconds
    done = world.publish()
    assert done.rows_carried == 50
    assert world.answers("e1", "e2") == [2.0, 5.0]


def test_rows_that_get_event_times_are_scored_anew_since_those_before_share_one_age(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(50))
    world.publish()
    assert world.publish().full_reason is None
    world.dated = True
    world.configure()
    assert "has no event times" in (world.publish().full_reason or "")
    assert [entry and entry.as_of for entry in world.table.read(["e1"])] == [DAY]


def test_a_partial_run_is_no_delta_run(world: DeltaWorld) -> None:
    world.configure()
    world.write(numbered(10))
    with pytest.raises(BadInput, match="leave delta out"):
        world.request(delta=True, entities=["e1"])


@pytest.mark.timeout(300)
def test_processes_killed_while_they_copy_and_score_cost_no_prediction_and_the_run_rolls_back(tmp_path: Path) -> None:
    rows, rng = 2_400, random.Random(5)
    # copying ends with a rest, so that a kill meets it before the run's record knows of the copy
    rig = Rig(tmp_path, batch="delta = true\nwrite_share = 0.005")
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(50, offset=0, name="tick.parquet")

    def write(changed: int, count: int) -> dict[str, float]:
        values = np.arange(count, dtype=np.float32)
        other = np.where(np.arange(count) % 2 == 0, np.float32(changed), np.float32(0))
        table = pa.table({"entity_id": [f"e{i}" for i in range(count)], "a": values, "b": other})
        pq.write_table(table, rig.stack.folder / "new", row_group_size=5_000)
        (rig.stack.folder / "new").replace(rig.stack.folder / "t.parquet")
        return dict(zip((f"e{i}" for i in range(count)), (values + other).tolist(), strict=True))

    def served() -> dict[str, float]:
        entries = rig.table.read([f"e{i}" for i in range(rows)])
        return {f"e{i}": next(iter(e.values.values())) for i, e in enumerate(entries) if e is not None}

    def copied(run_id: str) -> int:
        generations = rig.table.generations
        return sum(generations.count(one) for one in generations.all() if one.run_id == run_id)

    with rig.stack as stack:
        stack.start("gpu", "gpu-2", "maintenance", "api")
        stack.wait_ready(150)
        first = write(0, rows)
        assert rig.end(rig.request())["state"] == "published"
        second = write(7, rows - 200)
        run_id = rig.request(delta=True)
        wait_for(lambda: copied(run_id), "a copy", 60)
        stack.kill("maintenance")
        assert stack.deployment.runs.show(run_id).state is RunState.QUEUED
        stack.start("maintenance")
        for _ in range(3):
            rig.kill_at_work(["gpu", "gpu-2"], rng)
        stack.kill("maintenance")
        stack.start("maintenance")
        done = rig.end(run_id)
        assert (done["state"], done["error"], done["full_reason"]) == ("published", None, None)
        changed = (rows - 200) // 2
        assert (done["rows_carried"], done["rows_rescored"], done["rows_removed"]) == (changed, changed, 200)
        assert served() == second
        parts = pq.read_table(stack.folder / "out" / run_id).to_pylist()
        assert {
            row["entity_id"]: next(v for k, v in row.items() if k not in ("entity_id", "as_of")) for row in parts
        } == second
        stack.deployment.runs.rollback(MODEL)
        assert served() == first
        again = run_cli_json(stack.folder, "batch", "run", MODEL, "--delta", "--wait")
        assert (again["state"], again["rows_carried"]) == ("published", changed)
        assert served() == second
        rig.assert_clean()
