"""Whole runs over a real Redis; the broker is a list, and the model is a function."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.batch import start_or_join
from inference.batch import Runs, RunState, RunView, Trigger
from inference.errors import BadInput, Conflict, ModelError, NotFound, PredictionFailed, SourceError
from inference.features import Feature, FeatureContract, Vectoriser, key_columns
from inference.models import LoadedModel, ModelHost, ModelRegistry, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block, DType, Signature, TensorSpec
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.store import GenerationState, Table
from tests.support.leaks import leaked_keys

pytestmark = pytest.mark.integration

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
CONTRACT = FeatureContract((Feature("x", DType.FLOAT32),))
KEYS = Keys("t")


def record(version: int = 1) -> VersionRecord:
    return VersionRecord(
        version=version, state="ready", signature=SIGNATURE, contract=CONTRACT, fingerprint="f", inspected_at=0.0
    )


class Doubling:
    """Holds a model that doubles its input; `broken` makes it raise."""

    signature, device = SIGNATURE, "cpu-1"

    def __init__(self) -> None:
        self.record = record()
        self.broken = False
        self.rows = 0
        self.before: Callable[[], None] = lambda: None

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        return LoadedModel("m", self.record, Vectoriser(self.record.contract, self.record.signature), self)

    def predict(self, inputs: Block) -> Block:
        self.before()
        if self.broken:
            raise PredictionFailed("the model raised ValueError: no")
        self.rows += len(inputs["x"])
        return {"y": inputs["x"] * 2}


class World:
    """One deployment: Redis, a folder, a broker whose messages are delivered when a test says so."""

    def __init__(self, client: Client, root: Path) -> None:
        self.client, self.root = client, root
        self.configure()
        self.model = Doubling()
        self.tables: dict[str, Table] = {}
        self.table = self.tables["m"] = self.table_of(TableKind.PREDICTIONS, "m")
        self.queue: list[tuple[str, int]] = []
        self.drivers: list[str] = []
        self.inspected = 0

    def configure(self, **batch: Any) -> None:
        own = {"rows_per_chunk": 10, "micro_batch_rows": 4, "max_in_flight": 3, "parquet_path": "out", **batch}
        model = ModelSettings(
            path=self.root / "model", features=str(self.root / "t.parquet"), batch=BatchSettings(**own)
        )
        self.settings = Settings(models={"m": model})
        self.settings._root = self.root
        self.runs = self.make_runs()

    def table_of(self, kind: TableKind, model: str) -> Table:
        known = self.tables.get(model) if kind is TableKind.PREDICTIONS else None
        return known or Table(self.client, KEYS.table(kind, model), kind=kind, model=model)

    def make_runs(self) -> Runs:
        return Runs(
            self.settings,
            self.client,
            KEYS,
            ModelRegistry(self.client, KEYS),
            lambda: cast("ModelHost", self.model),
            self.table_of,
            self.send,
            lambda: None,
            start_driver=lambda run_id: self.drivers.append(run_id),
            inspect=self.inspect,
        )

    def send(self, run_id: str, numbers: Sequence[int]) -> None:
        self.queue += [(run_id, number) for number in numbers]

    def inspect(self, settings: Settings, model: str) -> dict[int, VersionRecord]:
        self.inspected += 1
        return {1: record()}

    def source(self, ids: Sequence[Any], values: Sequence[float | None] | None = None) -> None:
        table = {"entity_id": ids, "x": pa.array(values or [float(i) for i in range(len(ids))], pa.float32())}
        pq.write_table(pa.table(table), self.root / "t.parquet", row_group_size=12)

    def request(self, **kwargs: Any) -> RunView:
        return self.runs.request("m", trigger=Trigger.CLI, **kwargs)

    def work(self, most: int = 100) -> None:
        """Deliver what is on the queue."""
        for _ in range(min(most, len(self.queue))):
            self.runs.score(*self.queue.pop(0))

    def finish(self, run: RunView, model: str | None = None) -> RunView:
        for _ in range(20):
            self.runs.reconcile(model)
            if self.runs.show(run.run_id).state.is_over:
                break
            self.work()
        return self.runs.show(run.run_id)

    def answers(self, *ids: str) -> list[float | None]:
        return [None if entry is None else entry.values["y"] for entry in self.table.read(ids)]


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> World:
    world = World(redis_client, tmp_path)
    world.source([f"e{i}" for i in range(45)])
    return world


def failed_gates(run: RunView) -> list[str]:
    return [gate.name for gate in run.gates if not gate.passed]


def test_a_run_publishes_every_prediction_at_once_and_leaves_parquet_parts(world: World) -> None:
    run = world.request()
    assert (run.state, run.trigger) == (RunState.QUEUED, Trigger.CLI)

    world.runs.reconcile()
    world.work(2)
    halfway = world.runs.show(run.run_id)
    assert (halfway.state, halfway.chunks_done) == (RunState.RUNNING, 2)
    assert halfway.eta_s is not None
    assert world.answers("e0") == [None]

    done = world.finish(run)

    assert (done.state, done.rows_done, done.rows_total, done.rows_quarantined) == (RunState.PUBLISHED, 45, 45, 0)
    assert done.chunks_done == done.chunks_total
    assert failed_gates(done) == []
    assert world.answers(*(f"e{i}" for i in range(46))) == [*(2.0 * i for i in range(45)), None]
    folder = world.root / "out" / run.run_id
    success = json.loads((folder / "_SUCCESS").read_text())
    assert success["rows_total"] == 45
    assert success["state"] == "published"
    assert success["created_at"] < success["finished_at"]
    assert sorted(pq.read_table(folder, schema=None).column("y").to_pylist()) == [2.0 * i for i in range(45)]
    assert world.inspected == 1


@pytest.mark.parametrize("engine", ["spark", "ray"])
def test_a_run_on_a_cluster_asks_for_one_driver_and_sends_no_chunks(
    world: World, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr("inference.batch.engines.check_engine", lambda engine, model: None)
    run = world.request(engine=engine)

    for _ in range(3):
        world.runs.reconcile()

    assert (world.drivers, world.queue) == ([run.run_id], [])
    for number in range(world.runs.show(run.run_id).chunks_total or 0):
        world.runs.score(run.run_id, number)
    assert world.finish(run).state is RunState.PUBLISHED
    assert world.drivers == [run.run_id]


def test_a_chunk_that_is_delivered_twice_is_scored_once(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.queue *= 2

    assert world.finish(run).rows_done == 45
    assert world.model.rows == 45


def test_a_worker_that_loses_its_chunk_in_the_middle_writes_nothing_more(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.model.before = lambda: (
        world.runs.cancel(run.run_id) if world.runs.show(run.run_id).state == "running" else None
    )

    world.work(1)

    view = world.runs.show(run.run_id)
    assert (view.state, view.chunks_done) == (RunState.CANCELLED, 0)
    manifest = world.table.generations.manifest(view.generation or 0)
    assert manifest is not None
    assert world.table.generations.count(manifest) == 0
    assert list((world.root).glob("out/**/*.tmp")) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5, 2.5], "entity column 'entity_id' is double"),
        ([], "has no rows"),
    ],
)
def test_a_refused_source_opens_no_generation(world: World, ids: list[Any], message: str) -> None:
    world.source(ids)

    run = world.finish(world.request())

    assert run.state is RunState.FAILED
    assert message in (run.error or "")
    assert world.table.generations.all() == []
    assert world.queue == []


def test_a_missing_feature_is_named_and_the_next_run_is_free_to_start(world: World) -> None:
    pq.write_table(pa.table({"entity_id": ["a"], "xx": [1.0]}), world.root / "t.parquet")

    run = world.finish(world.request())

    assert run.state is RunState.FAILED
    assert "'x'" in (run.error or "")
    world.source(["a"])
    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_a_model_that_cannot_be_served_fails_the_run_with_its_line(world: World) -> None:
    def inspect(settings: Settings, model: str) -> dict[int, VersionRecord]:
        raise ModelError("model folder models/m is empty")

    world.inspect = inspect  # type: ignore[method-assign]
    world.runs = world.make_runs()

    run = world.finish(world.request())

    assert (run.state, run.error) == (RunState.FAILED, "model folder models/m is empty")


def test_a_failed_gate_keeps_the_old_predictions_serving(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.finish(world.request())
    monkeypatch.setattr(key_columns, "LOOKED_AT_ROWS", 2)  # so that the repeat is found by the gate
    world.source(["e0", "e1", "e1", "e2"], [100.0] * 4)

    run = world.finish(world.request())

    assert run.state is RunState.FAILED
    assert failed_gates(run) == ["duplicates", "size"]
    assert "such as 'e1'" in (run.error or "")
    assert world.answers("e0", "e44") == [0.0, 88.0]


def test_rows_that_cannot_be_scored_keep_the_run_from_publishing(world: World) -> None:
    world.source(["a", "b", None], [1.0, None, 2.0])

    run = world.finish(world.request())

    assert (run.state, run.rows_quarantined, failed_gates(run)) == (RunState.FAILED, 2, ["quarantine"])
    assert "'x' missing, and the feature has no default in 1 row (such as 'b')" in (run.error or "")


def test_a_forced_publication_serves_and_is_recorded(world: World) -> None:
    world.source(["a", "b"], [1.0, None])
    run = world.finish(world.request())

    with pytest.raises(Conflict, match="--force"):
        world.runs.publish(run.run_id)
    world.runs.publish(run.run_id, force=True, by="ada@host")

    forced = world.finish(run)
    assert (forced.state, forced.forced, forced.forced_by, forced.error) == (RunState.PUBLISHED, True, "ada@host", None)
    assert forced.forced_at is not None
    assert world.runs.list()[0].forced_by == "ada@host"
    assert world.answers("a", "b") == [2.0, None]


def test_a_cancelled_run_goes_on_with_only_what_is_left(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.work(2)
    world.runs.cancel(run.run_id)
    world.work()
    assert world.runs.show(run.run_id).chunks_done == 2
    world.queue.clear()
    world.runs.reconcile()
    assert world.runs.details(run.run_id).can_resume

    world.runs.resume(run.run_id)

    assert not world.runs.details(run.run_id).can_resume
    assert world.finish(run).state is RunState.PUBLISHED
    assert world.model.rows == 45
    assert world.answers("e44") == [88.0]


def test_a_published_run_is_not_taken_up_again(world: World) -> None:
    run = world.finish(world.request())

    with pytest.raises(Conflict, match="is published, not failed or cancelled"):
        world.runs.resume(run.run_id)


def test_a_run_whose_source_changed_is_not_taken_up_again(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.runs.cancel(run.run_id)
    world.source([f"e{i}" for i in range(46)])

    with pytest.raises(Conflict, match=r"t\.parquet was replaced"):
        world.runs.resume(run.run_id)


def test_a_run_over_csv_shows_the_file_and_goes_on_with_its_rows_as_they_were(world: World) -> None:
    table = world.root / "t.csv"
    table.write_text("entity_id,x\n" + "".join(f"e{i},{i}.0\n" for i in range(45)))
    run = world.request(source=str(table))
    world.runs.reconcile()
    world.work(2)
    assert world.runs.show(run.run_id).source == str(table)
    world.runs.cancel(run.run_id)
    table.write_text("entity_id,x\ne0,7.0\n")

    world.runs.resume(run.run_id)

    world.queue.clear()
    assert world.finish(run).state is RunState.PUBLISHED
    assert world.answers("e44") == [88.0]
    assert world.runs.details(run.run_id).source == str(table)


def test_a_run_whose_source_is_gone_is_not_taken_up_again(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.runs.cancel(run.run_id)
    Path(run.source).unlink()

    with pytest.raises(SourceError, match=r"t\.parquet"):
        world.runs.resume(run.run_id)


def test_a_newer_run_ends_the_hope_of_an_older_one_and_its_rows_are_removed(world: World) -> None:
    old = world.request()
    world.runs.reconcile()
    world.work(1)
    world.runs.cancel(old.run_id)
    generation = world.runs.show(old.run_id).generation or 0
    world.runs.reconcile()
    assert world.table.generations.state(generation) is GenerationState.LOADING
    assert world.runs.details(old.run_id).can_resume

    newer = world.request()
    assert not world.runs.details(old.run_id).can_resume
    world.finish(newer)

    assert world.table.generations.state(generation) is not GenerationState.LOADING
    assert world.client.keys(f"t:p:m:g:{generation}:*") == []
    assert not world.runs.details(old.run_id).can_resume
    with pytest.raises(Conflict, match="were collected"):
        world.runs.resume(old.run_id)


def test_a_model_that_keeps_raising_fails_the_run_with_what_it_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.batch.worker._MAX_PAUSE_S", 0.0)
    monkeypatch.setattr("inference.batch.scoring.MAX_FAILING_ROWS", 1)
    world.model.broken = True

    run = world.finish(world.request())

    assert run.state is RunState.FAILED
    assert "failed at every attempt" in (run.error or "")
    assert "ValueError: no" in (run.error or "")


def test_a_source_replaced_in_the_middle_fails_the_run(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.source([f"e{i}" for i in range(45)], [1.0] * 45)

    world.work(1)

    assert world.runs.show(run.run_id).state is RunState.FAILED
    assert "was replaced while the run was reading it" in (world.runs.show(run.run_id).error or "")


def test_a_reconciler_killed_between_publication_and_record_is_made_good(world: World) -> None:
    run = world.request()
    while (view := world.runs.show(run.run_id)).chunks_done != view.chunks_total:
        world.runs.reconcile()
        world.work()
    world.client.hset(KEYS.run(run.run_id), "state", "publishing")
    world.table.generations.publish(view.generation or 0, run_key=KEYS.run(run.run_id), run_state="publishing")

    assert world.finish(run).state is RunState.PUBLISHED
    assert world.answers("e44") == [88.0]


def test_a_rollback_serves_the_generation_before(world: World) -> None:
    with pytest.raises(Conflict, match="no published generation"):
        world.runs.rollback("m")
    first = world.finish(world.request())
    world.source([f"e{i}" for i in range(45)], [7.0] * 45)
    world.finish(world.request())
    assert world.answers("e1") == [14.0]

    back = world.runs.rollback("m")

    assert back.generation == first.generation
    assert world.answers("e1") == [2.0]


def test_runs_are_listed_newest_first_and_an_unknown_one_is_not_found(world: World) -> None:
    first = world.finish(world.request())
    second = world.request()

    assert [run.run_id for run in world.runs.list()] == [second.run_id, first.run_id]
    assert world.runs.list("m", 1)[0].to_json()["state"] == "queued"
    with pytest.raises(NotFound, match="no run 'nope'"):
        world.runs.show("nope")


def test_who_waits_for_a_run_joins_the_one_in_progress(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    by_beat = world.runs.request("m", trigger=Trigger.BEAT)
    assert start_or_join(world.runs, "m").run_id == by_beat.run_id
    assert capsys.readouterr().err == f"run {by_beat.run_id} of m is in progress already: waiting for it\n"
    world.finish(by_beat)
    assert world.runs.in_progress("m") is None
    assert start_or_join(world.runs, "m").run_id != by_beat.run_id


def test_one_model_that_fails_does_not_stop_another(world: World) -> None:
    other = ModelSettings(path=world.root / "o", features=str(world.root / "t.parquet"))
    world.settings.models["z"] = other
    world.settings.models.update({"m": world.settings.models.pop("m")})  # z comes first now
    world.client.set(KEYS.active_run("z"), "broken")
    world.client.hset(KEYS.run("broken"), "state", "nonsense")

    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_an_http_caller_gets_only_tables_beside_the_models_own(world: World) -> None:
    with pytest.raises(BadInput, match="outside"):
        world.runs.request("m", trigger=Trigger.API, source="/etc/passwd")


def test_nothing_of_a_run_outlives_it_for_ever(world: World) -> None:
    run = world.finish(world.request())

    leaked = [key for key in world.client.keys(f"t:r:{run.run_id}*") if world.client.ttl(key) < 0]
    assert leaked == []
    assert world.client.exists(KEYS.active_run("m"), KEYS.reconciler("m")) == 0
    assert np.all([world.client.ttl(key) > 0 for key in world.client.keys("t:p:m:g:1:*")])


def test_rows_that_were_left_out_lie_in_a_parquet_file_with_their_values(world: World) -> None:
    world.configure(max_quarantined_fraction=0.5)
    world.source(["a", "b", None, "d"], [1.0, None, 2.0, 3.0])

    run = world.finish(world.request())

    assert (run.state, run.rows_quarantined) == (RunState.PUBLISHED, 2)
    assert world.answers("a", "b", "d") == [2.0, None, 6.0]
    details = world.runs.details(run.run_id).to_json()
    folder = world.root / ".forecache" / "quarantine" / run.run_id
    assert details["quarantine"]["folder"] == str(folder)
    assert {bad["feature"]: bad["examples"] for bad in details["quarantine"]["reasons"]} == {None: ["null"], "x": ["b"]}
    kept = {row["entity_id"]: row for row in pq.read_table(folder).to_pylist()}
    assert kept["b"]["feature"] == "x"
    assert kept["b"]["values"] == {"entity_id": "b", "x": None}
    assert kept[None]["values"] == {"entity_id": None, "x": 2.0}


@pytest.mark.parametrize("how", ["failed at a gate", "cancelled in the middle"])
def test_what_a_run_scored_is_removed_once_it_cannot_be_resumed_any_more(world: World, how: str) -> None:
    if how == "failed at a gate":
        world.source([f"e{i}" for i in range(45)], [None, *[1.0] * 44])
        run = world.finish(world.request())
    else:
        run = world.request()
        world.runs.reconcile()
        world.work(2)
        world.runs.cancel(run.run_id)
    generation = f"t:p:m:g:{world.runs.show(run.run_id).generation}"
    world.runs.reconcile()
    assert world.client.keys(f"{generation}:*") != []
    temporary = world.root / "out" / run.run_id / ".part-000009.killed.tmp"
    temporary.touch()

    world.client.hset(KEYS.run(run.run_id), "finished_at", world.table.now() - 24 * 3600 - 1)
    world.runs.reconcile()
    assert world.client.keys(f"{generation}:*") == []
    with pytest.raises(Conflict, match="were collected: start a new run"):
        world.runs.resume(run.run_id)
    world.client.hset(generation, "sweep_due_at", 1)  # the longest that a straggler may take
    world.runs.reconcile()

    assert world.client.keys("t:p:m:g*") == []
    assert not temporary.exists()
    assert leaked_keys(world.client, "t") == []


def test_a_run_that_was_planned_anew_keeps_what_its_workers_write(world: World) -> None:
    run = world.request()
    dead = world.table.generations.begin(
        [TensorSpec("y", DType.FLOAT32)],
        rows_expected=45,
        model_version=1,
        contract_hash="",
        keep_s=60,
        run_id=run.run_id,
    )  # fmt: skip - of the maintenance worker that was killed while it planned
    temporary = world.root / "out" / run.run_id / ".part-000000.alive.tmp"
    temporary.parent.mkdir(parents=True)
    temporary.touch()

    world.runs.reconcile()  # plans it anew
    world.runs.reconcile()
    assert temporary.exists()
    assert world.client.hget(f"t:p:m:g:{dead.number}", "state") != GenerationState.LOADING.value.encode()
    assert world.finish(run).state is RunState.PUBLISHED
    assert not temporary.exists()


def test_rows_that_were_left_out_are_kept_as_long_as_their_run_is_known(world: World) -> None:
    world.source(["a", "b"], [1.0, None])
    run = world.finish(world.request())
    folder = world.root / ".forecache" / "quarantine" / run.run_id
    due = KEYS.quarantines("m")
    left = [part.name for part in folder.iterdir()]

    world.client.zadd(due, dict.fromkeys(world.client.zrange(due, 0, -1), 1))  # 30 days pass, but it was resumed
    world.runs.reconcile()
    assert [part.name for part in folder.iterdir()] == left == ["part-000000.parquet"]
    assert world.client.zrange(due, 0, -1, withscores=True)[0][1] > world.table.now() + 86400

    world.client.delete(KEYS.run(run.run_id))
    world.client.zadd(due, dict.fromkeys(world.client.zrange(due, 0, -1), 1))
    world.runs.reconcile()
    assert not folder.exists()
    assert world.client.zcard(due) == 0


def test_a_quarantine_that_cannot_be_removed_is_tried_again_and_what_others_put_there_stays(world: World) -> None:
    world.source(["a", "b"], [1.0, None])
    run = world.finish(world.request())
    folder = world.root / ".forecache" / "quarantine" / run.run_id
    (folder / "notes.txt").write_text("ours")
    lost = folder.with_name("m-20260101T000000-000000")
    (lost / "part-000000.parquet").mkdir(parents=True)  # nobody can delete it as a file
    due = KEYS.quarantines("m")
    world.runs.reconcile()  # sees that it is over: it is not taken for lost
    world.client.delete(KEYS.run(run.run_id))
    entry = f"{lost.name} {lost}"
    world.client.zadd(due, {f"{run.run_id} {folder}": 1, entry: 1})

    world.runs.reconcile()

    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert world.client.zrange(due, 0, -1) == [entry.encode()]
    assert world.client.zscore(due, entry) > world.table.now()


def test_predictions_that_moved_away_are_not_published(world: World) -> None:
    world.configure(rows_per_chunk=700)
    ids = [f"e{i}" for i in range(2_000)]
    world.source(ids, [float(i) for i in range(2_000)])
    assert world.finish(world.request()).state is RunState.PUBLISHED
    world.source(ids, [float(i) + 5 for i in range(2_000)])
    assert world.finish(world.request()).state is RunState.PUBLISHED
    world.source(ids, [0.0] * 2_000)

    run = world.finish(world.request())

    assert (run.state, failed_gates(run)) == (RunState.FAILED, ["drift"])
    assert world.answers("e1") == [12.0]


def test_a_run_in_progress_shows_its_chunks_phases_and_reasons(world: World) -> None:
    world.source([f"e{i}" for i in range(45)], [None, *(1.0,) * 44])
    run = world.request()
    world.runs.reconcile()
    world.work(2)

    shown = world.runs.details(run.run_id).to_json()

    assert shown["chunks"] == {"done": 2, "scoring": 0, "waiting": 1, "unsent": 4, "map": "##o...."}
    assert shown["attempts"] == 2
    assert shown["phases"]["scoring_s"] >= 0
    assert shown["phases"]["publishing_s"] is None
    assert shown["quarantine"]["reasons"][0]["examples"] == ["e0"]
    assert shown["rows_per_s"] > 0


def test_a_run_whose_record_redis_lost_is_told_of_as_failed(world: World) -> None:
    run = world.request()
    world.runs.reconcile()
    world.work(1)
    world.client.flushall()

    world.work()
    world.runs.reconcile()

    lost = world.runs.show(run.run_id)
    assert (lost.state, lost.rows_total) == (RunState.FAILED, 45)
    assert "the cache Redis lost its data while the run was going on" in (lost.error or "")
    assert [listed.run_id for listed in world.runs.list()] == [run.run_id]
    assert world.client.ttl(KEYS.run(run.run_id)) > 0
    assert not world.runs.details(run.run_id).can_resume
    with pytest.raises(Conflict, match="cannot go on, start a new one: its plan is gone"):
        world.runs.resume(run.run_id)
    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_a_run_that_ended_well_is_not_taken_for_lost(world: World) -> None:
    run = world.finish(world.request())
    world.runs.reconcile()

    assert world.runs.show(run.run_id).state is RunState.PUBLISHED


def test_a_run_that_fills_redis_fails_in_words_and_gives_its_rows_up(world: World) -> None:
    world.finish(world.request())
    run = world.request()
    world.runs.reconcile()
    world.work(2)
    generation = world.runs.show(run.run_id).generation or 0
    world.client.config_set("maxmemory", 1)
    try:
        world.work(1)
        world.runs.reconcile()
        full = world.runs.show(run.run_id)
        assert full.state is RunState.FAILED
        assert "out of memory" in (full.error or "")
        assert world.client.keys(f"t:p:m:g:{generation}:*") == []
        assert world.answers("e44") == [88.0]
    finally:
        world.client.config_set("maxmemory", 0)

    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_a_run_that_is_cancelled_while_it_is_planned_leaves_nothing_for_ever(world: World) -> None:
    run = world.request()
    begin = world.table.generations.begin

    def cancelled_meanwhile(*args: Any, **kwargs: Any) -> Any:
        world.runs.cancel(run.run_id)
        return begin(*args, **kwargs)

    world.table.generations.begin = cancelled_meanwhile  # type: ignore[method-assign]
    world.runs.reconcile()

    assert world.runs.show(run.run_id).state is RunState.CANCELLED
    assert leaked_keys(world.client, "t") == []


def test_a_rollback_may_name_the_generation_it_goes_back_from(world: World) -> None:
    world.finish(world.request())
    second = world.finish(world.request())

    with pytest.raises(Conflict, match="is not the current one"):
        world.runs.rollback("m", generation=(second.generation or 0) - 1)
    assert world.runs.rollback("m", generation=second.generation).generation == 1


def test_a_version_that_was_rolled_back_is_held_until_it_is_released(world: World) -> None:
    world.finish(world.request())
    ModelRegistry(world.client, KEYS).put("m", record(2))
    ModelRegistry(world.client, KEYS).activate("m", 2)
    assert world.finish(world.request()).model_version == 2

    assert world.runs.rollback("m").held_versions == (2,)
    assert world.finish(world.request()).model_version == 1
    with pytest.raises(Conflict, match="held: 2"):
        world.runs.release("m", version=7)
    released = world.runs.release("m")

    assert (released.model_version, released.held_versions) == (2, ())
    assert world.finish(world.request()).model_version == 2


def test_publishing_a_held_version_by_force_ends_its_hold(world: World) -> None:
    world.finish(world.request())
    ModelRegistry(world.client, KEYS).put("m", record(2))
    ModelRegistry(world.client, KEYS).activate("m", 2)
    world.finish(world.request())
    late = world.request()
    world.runs.reconcile()
    world.runs.rollback("m")
    assert failed_gates(world.finish(late)) == ["version"]

    world.runs.publish(late.run_id, force=True, by="ada")

    assert world.finish(late).state is RunState.PUBLISHED
    assert world.table.pointer().active_version == 2
    assert world.table.pointer().held_versions == frozenset()


def test_a_slow_model_does_not_hold_up_another(world: World) -> None:
    world.settings.models["slow"] = world.settings.models["m"]
    started, go_on = threading.Event(), threading.Event()

    def wait() -> list[Any]:
        started.set()
        go_on.wait(20)
        return []

    slow = world.table_of(TableKind.PREDICTIONS, "slow")
    slow.generations.all = wait  # type: ignore[assignment,method-assign]
    world.tables["slow"] = slow
    waiting = threading.Thread(target=world.runs.reconcile, args=("slow",))
    waiting.start()
    assert started.wait(10)

    assert world.finish(world.request(), "m").state is RunState.PUBLISHED
    go_on.set()
    waiting.join()


def test_a_resume_that_races_the_collector_gets_all_of_its_rows_or_is_refused(world: World) -> None:
    world.configure(resumable=0.001)
    outcomes = set()
    for turn in range(12):
        run = world.request()
        world.runs.reconcile()
        world.work(3)
        world.queue.clear()
        world.runs.cancel(run.run_id)
        collector = threading.Thread(target=world.make_runs().reconcile)
        if turn == 11:  # the collector is surely first, however fast the machine
            time.sleep(0.01)
        collector.start()
        if turn == 11:
            collector.join()
        time.sleep(turn * 0.001)
        try:
            world.runs.resume(run.run_id)
            taken_up = True
        except Conflict:
            taken_up = False
        collector.join()
        outcomes.add(taken_up)
        if taken_up:
            assert world.finish(run).state is RunState.PUBLISHED
            assert world.answers("e0", "e44") == [0.0, 88.0]
    assert leaked_keys(world.client, "t") == []
    assert False in outcomes


def test_a_rollback_that_races_a_publication_goes_back_from_what_it_saw_or_is_refused(world: World) -> None:
    for turn in range(10):
        world.source([f"e{i}" for i in range(45)], [float(turn)] * 45)
        run = world.request()
        while (view := world.runs.show(run.run_id)).chunks_done != view.chunks_total:
            world.runs.reconcile()
            world.work()
        before = world.table.pointer()
        publisher = threading.Thread(target=world.make_runs().reconcile)
        publisher.start()
        time.sleep(turn * 0.003)
        try:
            back: int | None = world.runs.rollback("m", generation=before.current).generation
        except Conflict:
            back = None
        publisher.join()
        after = world.table.pointer()
        assert back in (None, before.previous)
        assert after.current is not None
        assert world.table.generations.state(after.current) is GenerationState.CURRENT
        assert {world.answers(f"e{i}")[0] for i in range(45)} == {world.answers("e0")[0]}
        assert world.finish(run).state is RunState.PUBLISHED
    assert leaked_keys(world.client, "t") == []


def test_the_feature_table_comes_from_the_same_pass_as_the_predictions(world: World) -> None:
    world.configure(feature_table=True)
    world.source([f"e{i}" for i in range(30)], [None if i == 7 else float(i) for i in range(30)])
    world.configure(feature_table=True, max_quarantined_fraction=0.1)

    done = world.finish(world.request())

    assert (done.state, done.rows_quarantined) == (RunState.PUBLISHED, 1)
    assert "features" in [gate.name for gate in done.gates]
    features = world.table_of(TableKind.FEATURES, "m")
    assert features.pointer().current == done.feature_generation
    stored = features.read_block([f"e{i}" for i in range(30)])
    assert stored is not None
    assert stored.found.tolist() == [i != 7 for i in range(30)]
    assert stored.block["x"][stored.found].tolist() == [float(i) for i in range(30) if i != 7]


def test_a_refused_run_leaves_the_features_that_serve_and_gives_its_own_up(world: World) -> None:
    world.configure(feature_table=True)
    first = world.finish(world.request())
    world.source(["e1"], [99.0])
    refused = world.finish(world.request())
    assert (refused.state, failed_gates(refused)) == (RunState.FAILED, ["size"])
    features = world.table_of(TableKind.FEATURES, "m")
    assert features.pointer().current == first.feature_generation

    world.source([f"e{i}" for i in range(45)])
    world.finish(world.request())
    world.runs.reconcile()
    assert refused.feature_generation is not None
    assert features.generations.state(refused.feature_generation) is not GenerationState.LOADING


def test_a_rollback_takes_back_the_features_that_the_run_had_published(world: World) -> None:
    world.configure(feature_table=True)
    first, second = world.finish(world.request()), world.finish(world.request())
    features = world.table_of(TableKind.FEATURES, "m")
    assert features.pointer().current == second.feature_generation
    world.runs.rollback("m")
    assert features.pointer().current == first.feature_generation
    assert world.table.pointer().current == first.generation


def test_a_rollback_leaves_features_that_came_from_elsewhere(world: World) -> None:
    world.finish(world.request())
    world.configure(feature_table=True)
    with_features = world.finish(world.request())
    world.configure(feature_table=False)
    world.finish(world.request())
    world.runs.rollback("m")
    assert world.table_of(TableKind.FEATURES, "m").pointer().current == with_features.feature_generation


def test_a_process_killed_between_the_two_publications_is_made_good(world: World) -> None:
    world.configure(feature_table=True)
    run = world.request()
    world.runs.reconcile()
    world.work()
    planned = world.runs.show(run.run_id)
    assert planned.generation is not None
    world.table.generations.publish(planned.generation)  # and here it died
    done = world.finish(run)
    assert done.state is RunState.PUBLISHED
    assert world.table_of(TableKind.FEATURES, "m").pointer().current == planned.feature_generation


def test_a_run_may_write_parquet_and_nothing_else(world: World) -> None:
    world.configure(prediction_table=False)
    done = world.finish(world.request())
    assert (done.state, done.generation, done.rows_done) == (RunState.PUBLISHED, None, 45)
    assert failed_gates(done) == []
    assert world.answers("e0") == [None]
    folder = world.root / "out" / done.run_id
    success = json.loads((folder / "_SUCCESS").read_text())
    assert [column["name"] for column in success["schema"]] == ["entity_id", "y", "as_of"]
    assert pq.read_table(folder).num_rows == 45
    assert world.client.keys("*:b:*") == []


def test_ids_are_compared_even_when_no_table_counts_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_columns, "LOOKED_AT_ROWS", 2)
    world.configure(prediction_table=False)
    world.source(["e1", "e2", "e1"])
    done = world.finish(world.request())
    assert (done.state, failed_gates(done)) == (RunState.FAILED, ["coverage", "duplicates"])
    assert "'e1'" in (done.error or "")
    assert not (world.root / "out" / done.run_id / "_SUCCESS").exists()


def test_a_run_of_only_parquet_fails_when_success_cannot_be_written(world: World) -> None:
    world.configure(prediction_table=False)
    run = world.request()
    world.runs.reconcile()
    world.work()
    (world.root / "out" / run.run_id / "_SUCCESS").mkdir()
    done = world.finish(run)
    assert (done.state, "not published" in (done.error or "")) == (RunState.FAILED, True)


def test_a_run_of_only_features_is_published_by_their_table(world: World) -> None:
    world.configure(prediction_table=False, feature_table=True, parquet_path=None)
    done = world.finish(world.request())
    assert (done.state, done.generation) == (RunState.PUBLISHED, None)
    assert world.table_of(TableKind.FEATURES, "m").pointer().current == done.feature_generation
    assert not (world.root / "out").exists()


def test_some_rows_need_the_prediction_table(world: World) -> None:
    world.configure(prediction_table=False)
    with pytest.raises(BadInput, match="prediction_table"):
        world.request(entities=["e1"])
