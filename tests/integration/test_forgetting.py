"""A forgotten entity is gone from every key and file, and stays away from runs, answers and updates."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import forecache
from inference.batch import RunState, RunView
from inference.batch.vectors import open_vectors
from inference.errors import EntityForgotten, NotFound
from inference.features import FeatureUpdate, FeatureWriter, load_features
from inference.forgetting import ForgetReport, Forgetting
from inference.models import ModelRegistry
from inference.monitoring.queues import JobPriority
from inference.redis.clients import REQUEST, Client, open_async_client
from inference.redis.keys import TableKind
from inference.serving.answer_sample import AnswerSample
from inference.serving.job_queue import JobQueue
from inference.serving.jobs import JobRequest, run_part
from inference.sources import hash_ids
from inference.store import Origin, stored_id, stored_ids
from tests.integration.test_delta_runs import DeltaWorld
from tests.integration.test_realtime_scorer import Knows, Worker
from tests.integration.test_runs import KEYS, SIGNATURE, Doubling
from tests.support.leaks import leaked_keys
from tests.support.plain_models import write_slow_sum_model
from tests.support.runs_rig import CALL_S, MODEL, Rig
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

ANN, LONG = "person-7741", "a very long id of a person whose name has an é and over sixty bytes " * 2
GONE = (ANN, LONG)


class ForgettingWorld(DeltaWorld):
    """A deployment that fills both tables, writes Parquet, and keeps vectors."""

    def configure(self, **batch: Any) -> None:
        super().configure(**{"parquet_path": "out", "feature_table": True, "max_quarantined_fraction": 0.5, **batch})
        self.forgetting = self.make_forgetting()

    def make_forgetting(self) -> Forgetting:
        return Forgetting(self.settings, self.client, KEYS, ModelRegistry(self.client, KEYS), self.table_of)

    def forget(self, *ids: str) -> list[ForgetReport]:
        return [self.forgetting.forget("m", one) for one in ids or GONE]

    def rows(self, factor: float = 1.0) -> dict[str, tuple[float | None, int | None]]:
        values = {f"e{i}": factor * i for i in range(120)}
        # both come first, so that a worker has them in hand early, and others have places behind theirs
        return {name: (value, None) for name, value in {ANN: factor * 1e3, LONG: factor * 1e4, **values}.items()}

    @property
    def features(self) -> Any:
        return self.table_of(TableKind.FEATURES, "m")


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> ForgettingWorld:
    world = ForgettingWorld(redis_client, tmp_path)
    world.table.versions.activate(1)
    return world


def mentions(client: Client, ids: tuple[str, ...] = GONE) -> list[str]:
    """Return each key that names one of the ids: in its name, or anywhere in its value, packed or not."""
    forms = {form for one in ids for form in (one.encode(), json.dumps(one)[1:-1].encode(), stored_id(one))}
    found = []
    for key in client.scan_iter(count=1000):
        texts = [key, *_texts(client, key)]
        if any(form in text for text in texts for form in forms):
            found.append(key.decode(errors="replace"))
    return found


def _texts(client: Any, key: bytes) -> Iterator[bytes]:
    kind = client.type(key).decode()
    values: list[bytes] = []
    if kind == "string":
        values = [client.get(key) or b""]
    elif kind == "hash":
        values = [part for pair in client.hgetall(key).items() for part in pair]
    elif kind == "list":
        values = client.lrange(key, 0, -1)
    elif kind == "zset":
        values = client.zrange(key, 0, -1)
    else:
        assert kind in ("set", "none"), kind
        values = list(client.smembers(key)) if kind == "set" else []
    for value in values:
        yield value
        try:
            yield zlib.decompress(value)
        except zlib.error:
            continue


def ids_in_files(root: Path) -> set[str]:
    """Return the forgotten ids that a part of a run, or a line beside it, still names."""
    found = set()
    for path in (root / "out").rglob("*"):
        if path.suffix == ".parquet":
            found |= set(pq.ParquetFile(path).read(columns=["entity_id"]).column(0).to_pylist())
        elif path.is_file():
            found |= {one for one in GONE if one in path.read_text() or json.dumps(one)[1:-1] in path.read_text()}
    for path in root.rglob("part-*.parquet"):
        found |= set(pq.ParquetFile(path).read(columns=["entity_id"]).column(0).to_pylist())
    return found & set(GONE)


def ids_in_vectors(world: ForgettingWorld) -> int:
    """Return how many forgotten ids the vectors of runs hold."""
    hashes = hash_ids(stored_ids(pa.array(GONE, pa.string())))
    wholes = [open_vectors(str(path.parent)) for path in world.root.rglob("vectors.arrow")]
    assert wholes
    return sum(int(whole.find(hashes).known.sum()) for whole in wholes if whole is not None)


def fill(world: ForgettingWorld) -> list[RunView]:
    """Write of both ids wherever something of an entity is kept: run after run, one of them held."""
    rows = world.rows()
    rows[ANN] = (None, None)  # quarantined, named as an example
    world.write(rows)
    done = [world.publish()]
    for factor in (2.0, 5.0):
        world.write(world.rows(factor))
        done.append(world.publish(delta=False))
    world.write(world.rows(9.0))
    held = world.finish(world.request(hold=True))
    assert held.state is RunState.HELD
    diff = world.runs.diff(held.run_id)
    assert {mover.id for output in diff.outputs for mover in output.movers} >= {ANN}
    for table, version in ((world.table, 1), (world.features, 0)):
        fields = SIGNATURE.outputs if version else SIGNATURE.inputs
        block = {fields[0].name: np.array([1.0, 2.0], np.float32)}
        now = table.now()
        table.overlay.upsert(
            GONE, fields, block, as_of=np.full(2, now), computed_at=now, model_version=version,
            origin=Origin.REALTIME, keep_s=900,
        )  # fmt: skip
    sample = AnswerSample(world.settings, world.client, KEYS)
    for entity_id in GONE:
        sample.remember("m", entity_id, {"x": np.array([1.0], np.float32)}, 2.0, 1, now)
    return [*done, held]


def test_nothing_names_a_forgotten_entity_any_more(world: ForgettingWorld) -> None:
    fill(world)
    assert len(mentions(world.client)) > 15
    assert ids_in_files(world.root) == set(GONE)
    assert ids_in_vectors(world) > 1

    reports = world.forget()

    assert mentions(world.client) == []
    assert ids_in_files(world.root) == set()
    assert ids_in_vectors(world) == 0
    assert [report.done for report in reports] == [True, True], reports
    removed = {item.place.partition(" of run")[0]: item.removed for item in reports[0].items if item.removed}
    assert {"predictions, computed on demand", "features, updates", "sample of answers"} <= set(removed)
    assert {"records", "Parquet parts", "quarantined rows", "vectors"} <= set(removed)
    assert leaked_keys(world.client, "t") == []
    assert world.table.read(["e5"]) != [None]

    again = world.forget()
    assert [sum(item.removed for item in report.items) for report in again] == [0, 0]
    assert [entry.done_at is not None for entry in world.forgetting.listed("m").entries] == [True, True]


def test_a_folder_that_somebody_removed_or_moved_stops_nothing(world: ForgettingWorld) -> None:
    first, second, *_ = fill(world)
    shutil.rmtree(world.root / "out" / first.run_id)
    assert all(report.done for report in world.forget())
    world.configure(parquet_path="elsewhere")
    [report] = world.forget(ANN)
    told = {item.place: item.left for item in report.items if item.left}
    assert "by hand" in told[f"Parquet parts of run {second.run_id}"]
    assert mentions(world.client) == []


@pytest.mark.parametrize("delta", [False, True])
def test_the_next_runs_leave_it_out_until_it_is_lifted(world: ForgettingWorld, delta: bool) -> None:
    world.write(world.rows())
    world.publish(delta=delta)
    world.forget()
    rows = world.rows()
    rows["e7"] = (70.0, None)
    world.write(rows)

    done = world.publish(delta=delta)

    assert world.table.read([*GONE, "e7"])[:2] == [None, None]
    assert world.answers("e7", "e8") == [140.0, 16.0]
    assert world.features.read(GONE) == [None, None]
    assert mentions(world.client) == []
    assert ids_in_files(world.root) == set()
    assert [gate.detail for gate in done.gates if gate.name == "coverage"] == [
        "all 120 entities are stored, without 2 that were forgotten"
    ]
    if delta:
        assert (done.full_reason, done.rows_carried, done.rows_rescored) == (None, 119, 1)

    assert [world.forgetting.lift("m", one) for one in (*GONE, "nobody")] == [True, True, False]
    world.publish(delta=delta)
    assert world.answers(*GONE) == [2e3, 2e4]
    assert ids_in_files(world.root) == set(GONE)


def test_a_partial_run_that_names_it_leaves_it_out(world: ForgettingWorld) -> None:
    world.write(world.rows())
    world.publish()
    waiting = world.request(entities=[ANN, "e1"])
    [report] = world.forget(ANN)
    assert not report.done
    assert [item.place for item in report.items if item.left] == [f"run {waiting.run_id}"]
    assert mentions(world.client, (ANN,)) == []
    assert world.finish(waiting).state is RunState.PUBLISHED

    partial = world.finish(world.request(entities=[ANN, "e2"]))

    assert (partial.state, partial.rows_done) == (RunState.PUBLISHED, 2)
    assert world.table.read([ANN]) == [None]
    assert world.answers("e2") == [4.0]
    assert world.forget(ANN)[0].done


@pytest.mark.parametrize("partial", [False, True])
def test_a_worker_that_had_begun_its_chunk_brings_nothing_back(world: ForgettingWorld, partial: bool) -> None:
    world.write(world.rows())
    world.publish()
    world.write(world.rows(3.0))

    def forget_once() -> None:
        world.model.before = lambda: None
        world.forget()

    run = world.request(entities=[*GONE, "e1"]) if partial else world.request()
    world.runs.reconcile()
    world.model.before = forget_once
    done = world.finish(run)

    assert (done.state, done.error) == (RunState.PUBLISHED, None)
    assert world.table.read(GONE) == [None, None]
    assert world.answers("e1") == [6.0]
    assert mentions(world.client) == []
    assert ids_in_files(world.root) == set()
    assert all(report.done for report in world.forget())


def test_rows_that_were_counted_before_are_not_missed(world: ForgettingWorld) -> None:
    world.write(world.rows())
    run = world.request()
    world.runs.reconcile()
    world.work()
    world.forget()  # its chunks were done, or some of them
    assert world.finish(run).state is RunState.PUBLISHED
    assert world.table.read(GONE) == [None, None]


def test_forgetting_may_be_killed_at_any_place_and_asked_again(
    world: ForgettingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    calls = 0

    def dying(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return called

    for at in range(1, 40, 3):
        calls = 0
        with monkeypatch.context() as patch:
            for name in ("send", "run_script", "exchange"):
                patch.setattr(Client, name, dying(getattr(Client, name), at))
            patch.setattr("pyarrow.parquet.ParquetWriter.write_table", dying(pq.ParquetWriter.write_table, at))
            try:
                world.make_forgetting().forget("m", ANN)
            except KeyboardInterrupt:
                world.client.delete(KEYS.reconciler("m"))  # as if its lease had run out
    assert all(report.done for report in world.forget())
    assert mentions(world.client) == []
    assert ids_in_files(world.root) == set()
    world.write(world.rows(9.0))
    assert world.publish().state is RunState.PUBLISHED  # whatever became of the vectors
    assert world.table.read(GONE) == [None, None]


def test_features_are_neither_updated_nor_loaded(world: ForgettingWorld) -> None:
    world.forget(ANN)
    vectoriser = Doubling().get("m").vectoriser
    writer = FeatureWriter(world.features, world.table, vectoriser.contract, keep_s=900)
    with pytest.raises(EntityForgotten, match="forgotten on request") as refused:
        writer.write([FeatureUpdate("e1", {"x": 1.0}), FeatureUpdate(ANN, {"x": 1.0})], place="items.{}.")
    assert refused.value.field == "items.1.entity_id"
    assert world.features.read(["e1"]) == [None]

    world.write(world.rows())
    report = load_features(
        world.features, str(world.root / "t.parquet"), vectoriser, entity_column="entity_id", keep_s=900
    )
    assert report.rows == 121
    assert world.features.read([ANN]) == [None]
    assert mentions(world.client, (ANN,)) == []

    def forget_meanwhile(manifest: Any) -> int:
        world.forget(LONG)
        return counted(manifest)

    table = world.features
    counted, table.generations.count = table.generations.count, forget_meanwhile
    load_features(table, str(world.root / "t.parquet"), vectoriser, entity_column="entity_id", keep_s=900)
    assert [entry is None for entry in table.read(["e1", LONG])] == [False, True]
    assert mentions(world.client) == []


def test_an_answer_that_is_stored_late_is_removed_again(world: ForgettingWorld) -> None:
    world.forget(ANN)
    block, now = {"y": np.array([1.0, 2.0], np.float32)}, world.table.now()
    world.table.overlay.upsert(
        [ANN, "e1"], SIGNATURE.outputs, block, as_of=np.full(2, now), computed_at=now, model_version=1,
        origin=Origin.REALTIME, keep_s=900,
    )  # fmt: skip
    world.table.overlay.outdate([ANN], changed_at=np.array([now]), keep_s=900)
    assert world.table.read([ANN])[0] is None
    assert world.answers("e1") == [2.0]
    assert mentions(world.client, (ANN,)) == []


def test_an_entry_ends_by_itself(world: ForgettingWorld) -> None:
    listed = world.table.forgotten
    listed.add(ANN, until=world.table.now() + 900)
    listed.add(LONG, until=world.table.now() - 1)
    assert listed.find([stored_id(one) for one in GONE]).tolist() == [True, False]
    assert [entry.holds(world.table.now()) for entry in listed.all().entries] == [True, False]
    with pytest.raises(NotFound, match="not on the list"):
        world.forgetting.remove("m", LONG)
    world.client.flushdb()  # another key is made then, and this process has the old one
    assert not listed.find([stored_id(ANN)]).any()
    world.make_forgetting().add("m", ANN)
    assert listed.find([stored_id(one) for one in GONE]).tolist() == [True, False]


class Scorer:
    """Predicts 1.0 for each entity; calls `before` first."""

    def __init__(self) -> None:
        self.before: Callable[[], Any] = lambda: None

    def predict_entities(self, model: str, entity_ids: list[Any], **_: Any) -> dict[str, Any]:
        self.before()
        items = [{"entity_id": one, "prediction": 1.0, "as_of": 0.0} for one in entity_ids]
        return {"model": model, "model_version": 1, "computed_at": 0.0, "predictions": items}

    def predict_instances(self, model: str, instances: list[Any], **_: Any) -> dict[str, Any]:
        raise NotImplementedError


async def test_jobs_lose_the_entity_before_while_and_after_it_is_computed(world: ForgettingWorld) -> None:
    async def enqueue(*_: Any, **__: Any) -> None:
        return None

    world.forgetting.add("m", "somebody else")
    url = world.client.connection_pool.connection_kwargs
    async with open_async_client(f"redis://{url['host']}:{url['port']}/{url.get('db', 0)}", REQUEST) as client:
        jobs = JobQueue(client, KEYS, enqueue, world.table.now)
        after, before, while_ = [
            await jobs.create(JobRequest("m", ["e1", ANN], priority=JobPriority.NORMAL)) for _ in range(3)
        ]
        scorer = Scorer()
        run_part(world.client, KEYS, scorer, after, 0)
        assert len(mentions(world.client, (ANN,))) == 3
        scorer.before = lambda: world.forget(ANN)
        run_part(world.client, KEYS, scorer, while_, 0)
        scorer.before = lambda: None
        run_part(world.client, KEYS, scorer, before, 0)
        assert mentions(world.client, (ANN,)) == []
        for job_id in (after, before, while_):
            first, second = await jobs.rows(await jobs.show(job_id))
            assert first.entity_id == "e1"
            assert (second.entity_id, type(second.answer)) == (None, EntityForgotten), job_id


@pytest.mark.parametrize("made_up", ["defaults", "404"])
def test_nothing_is_computed_on_demand_for_it(redis_client: Client, made_up: str) -> None:
    realtime = {"unknown_entity": "defaults"} if made_up == "defaults" else {}
    worker = Worker(redis_client, default=1.0, fallback=Knows(**{ANN: 5.0}), parity=True, **realtime)
    worker.predictions.forgotten.add(ANN)
    worker.load({"e1": 2.0})

    for kwargs in ({}, {"overrides": {"x": 1.0}}):
        result = worker.scorer.predict_entities("m", [ANN, "e1", ""], **kwargs)
        codes = [item.get("error", {}).get("code") for item in result["predictions"]]
        assert codes == ["forgotten", None, "bad-entity-id"]
    assert worker.scorer.explain_entity("m", [ANN])["predictions"][0]["error"]["code"] == "forgotten"
    assert mentions(redis_client, (ANN,)) == []

    worker.predictions.forgotten.lift(ANN)
    assert "prediction" in worker.scorer.predict_entities("m", [ANN])["predictions"][0]
    assert mentions(redis_client, (ANN,)) != []


def test_an_answer_that_is_computed_while_it_is_forgotten_is_not_kept(redis_client: Client) -> None:
    worker = Worker(redis_client, default=1.0, parity=True)
    worker.load({ANN: 2.0})
    gather = worker.scorer._gather

    def forget_meanwhile(*args: Any) -> Any:
        gathered = gather(*args)
        worker.predictions.forgotten.add(ANN)
        for table in (worker.predictions, worker.features):
            table.overlay.remove([stored_id(ANN)])
        return gathered

    worker.scorer._gather = forget_meanwhile  # type: ignore[method-assign]
    worker.scorer.predict_entities("m", [ANN])
    assert mentions(redis_client, (ANN,)) == []


@pytest.mark.slow
def test_every_door_knows_that_it_is_forgotten(tmp_path: Path) -> None:
    """Over HTTP, by the client and by the command, with real processes; maintenance is killed meanwhile."""
    rig = Rig(tmp_path, batch="feature_table = true\n")
    write_slow_sum_model(tmp_path / "model", ["a", "b"], seconds=CALL_S)
    rows = {"entity_id": [ANN, "e8"], "a": np.array([7, 8], np.float32), "b": np.ones(2, np.float32)}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack, forecache.Client(stack.url, model=MODEL, timeout_s=30) as client:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        rig.end(rig.request())
        assert client.predict(ANN).value == 8
        client.put_features(ANN, {"a": 1.0, "b": 1.0})
        job = client.enqueue([ANN, "e8"])
        assert job.result(60)[1].value == 9  # type: ignore[union-attr]

        stack.kill("maintenance")
        waiting = httpx.delete(f"{stack.url}/entities/{ANN}?model={MODEL}&wait_s=0")
        assert (waiting.status_code, waiting.json()["done"], waiting.json()["forgotten"]) == (202, False, True)
        stack.start("maintenance")
        done = wait_for(lambda: (answer := client.forget(ANN)).done and answer, "an end of forgetting", 60)
        assert {item["place"] for item in done.details["items"] if item["left"]} == set()

        with rig.cache() as cache:
            assert mentions(cache, (ANN,)) == []
        with pytest.raises(forecache.EntityForgotten) as refused:
            client.predict(ANN)
        assert (refused.value.status, refused.value.code) == (404, "forgotten")
        answers = client.predict_many(["e8", ANN])
        assert [type(answer).__name__ for answer in answers] == ["Prediction", "Failed"]
        assert answers[1].error.code == "forgotten"  # type: ignore[union-attr]
        with pytest.raises(forecache.EntityForgotten):
            client.put_features(ANN, {"a": 1.0, "b": 1.0})
        row = client.enqueue([ANN]).result(60)[0]
        assert (row.entity_id, row.error.code) == (None, "forgotten")  # type: ignore[union-attr]
        [listed] = httpx.get(f"{stack.url}/entities?model={MODEL}").json()["entities"]
        assert (listed["done"], ANN in str(listed)) == (True, False)

        rig.end(rig.request())
        assert rig.table.read([ANN]) == [None]
        told = stack.cli("forget", "--list")
        assert (told.returncode, listed["digest"] in told.stdout, "all removed" in told.stdout) == (0, True, True)
        assert stack.cli("forget", MODEL, ANN).returncode == 0
        assert "may be known again" in stack.cli("forget", MODEL, ANN, "--lift").stdout
        assert not client.lift(ANN).forgotten
        rig.end(rig.request())
        assert client.predict(ANN).value == 8
