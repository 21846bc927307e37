"""Whatever is raised while a run is planned, moved on or published: it ends in one sentence, and its model is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import structlog.testing

from inference.batch import Runs, RunState, RunView, Trigger, publishing
from inference.batch.publishing import RunTables
from inference.errors import StoreUnavailable
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, ModelHost, ModelRegistry, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block, DType, Signature, TensorSpec
from inference.settings import Settings
from inference.store import GenerationState, Table
from tests.support.waiting import wait_for
from workers.maintenance import ModelTimer

pytestmark = pytest.mark.integration

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
CONTRACT = FeatureContract((Feature("x", DType.FLOAT32),))
RECORD = VersionRecord(
    version=1, state="ready", signature=SIGNATURE, contract=CONTRACT, fingerprint="f", inspected_at=0.0
)
KEYS = Keys("t")
ROWS = 30


class Doubling:
    """Holds a model that doubles its input."""

    signature, device = SIGNATURE, "cpu-1"

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        return LoadedModel("m", RECORD, Vectoriser(CONTRACT, SIGNATURE), self)

    def predict(self, inputs: Block) -> Block:
        return {"y": inputs["x"] * 2}


class World:
    """Two models over one Redis; the broker is a list, and any of the parts may be told to raise."""

    def __init__(self, client: Client, root: Path) -> None:
        own = {"rows_per_chunk": 10, "micro_batch_rows": 4}
        for name in ("m", "other"):
            columns = {"entity_id": [f"e{i}" for i in range(ROWS)], "x": np.arange(ROWS, dtype=np.float32)}
            pq.write_table(pa.table(columns), root / f"{name}.parquet")
        models = {
            name: {"path": root / "model", "features": str(root / f"{name}.parquet"), "batch": own}
            for name in ("m", "other")
        }
        self.root = root
        self.settings = Settings.model_validate({"models": models})
        self.queue: list[tuple[str, int]] = []
        self.tables = {
            (kind, name): Table(client, KEYS.table(kind, name), kind=kind, model=name)
            for kind in TableKind
            for name in models
        }
        self.inspecting: Exception | None = None
        self.sending: Exception | None = None
        self.runs = Runs(
            self.settings,
            client,
            KEYS,
            ModelRegistry(client, KEYS),
            lambda: cast("ModelHost", Doubling()),
            lambda kind, name: self.tables[kind, name],
            self.send,
            lambda: None,
            inspect=self.inspect,
        )

    @property
    def table(self) -> Table:
        return self.tables[TableKind.PREDICTIONS, "m"]

    def inspect(self, settings: Settings, model: str) -> dict[int, VersionRecord]:
        if self.inspecting is not None and model == "m":
            raise self.inspecting
        return {1: RECORD}

    def send(self, run_id: str, numbers: Sequence[int]) -> None:
        if self.sending is not None and run_id.startswith("m-"):
            raise self.sending
        self.queue += [(run_id, number) for number in numbers]

    def request(self, model: str = "m", **more: Any) -> RunView:
        return self.runs.request(model, trigger=Trigger.CLI, **more)

    def finish(self, run: RunView) -> RunView:
        for _ in range(10):
            self.runs.reconcile()
            while self.queue:
                self.runs.score(*self.queue.pop())
        return self.runs.show(run.run_id)

    def assert_serves(self, factor: float) -> None:
        entries = self.table.read([f"e{i}" for i in range(ROWS)])
        assert [entry and entry.values["y"] for entry in entries] == [factor * i for i in range(ROWS)]

    def assert_next_run_is_published(self) -> None:
        assert self.finish(self.request()).state is RunState.PUBLISHED
        self.assert_serves(2.0)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, in the place of printing it."""
    with structlog.testing.capture_logs() as logs:
        yield logs


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> World:
    return World(redis_client, tmp_path)


UNFORESEEN = [
    KeyError("Column id does not exist in schema"),
    TypeError("Integer exceeds 64-bit range"),
    UnicodeEncodeError("utf-8", "x\udcff", 1, 2, "surrogates not allowed"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    OSError(5, "Input/output error"),
    pa.ArrowInvalid("first line\nsecond line of redis://me:hush@host"),
    ZeroDivisionError("a name that is no UTF-8: \udcff"),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_a_run_whose_planning_raises_anything_fails_in_one_sentence(world: World, error: Exception) -> None:
    serving = world.finish(world.request())
    assert serving.state is RunState.PUBLISHED
    ModelRegistry(world.table._client, KEYS).put("m", VersionRecord.refused(1, "again", inspected_at=0.0))
    world.inspecting = error
    other = world.request("other")
    failed = world.finish(world.request())
    assert failed.state is RunState.FAILED
    assert failed.error is not None
    assert failed.error.startswith(f"it cannot be planned: {type(error).__name__}")
    assert "\n" not in failed.error
    assert "hush" not in failed.error
    assert world.runs.show(other.run_id).state is RunState.PUBLISHED
    world.assert_serves(2.0)
    world.inspecting = None
    world.assert_next_run_is_published()


def test_a_table_with_a_column_twice_fails_its_run_and_not_for_ever(world: World) -> None:
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["z"]), pa.array([1.0], "float32")], names=["entity_id", "entity_id", "x"]
    )
    pq.write_table(twice, world.root / "m.parquet")
    failed = world.finish(world.request())
    assert failed.state is RunState.FAILED
    assert "entity_id" in (failed.error or "")
    assert world.request().state is RunState.QUEUED, "the model is free"


def as_our_client_raises_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> StoreUnavailable:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(redis.Redis, "execute_command", fail)
        with pytest.raises(StoreUnavailable) as raised:
            Client().get("a key")
    return raised.value


@pytest.mark.parametrize(
    "error", [StoreUnavailable("gone"), redis.ConnectionError("reset"), redis.BusyLoadingError("loading")]
)
def test_an_outage_while_a_run_is_planned_ends_nothing(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = isinstance(error, StoreUnavailable)
    world.inspecting = error if ours else as_our_client_raises_it(error, monkeypatch)
    run = world.request()
    assert world.finish(run).state is RunState.QUEUED
    world.inspecting = None
    assert world.finish(run).state is RunState.PUBLISHED


def test_a_broker_that_raises_what_nobody_foresaw_ends_the_run(world: World) -> None:
    world.sending = ValueError("'master_name' transport option must be specified.")
    failed = world.finish(world.request())
    assert failed.state is RunState.FAILED
    assert failed.error == "it cannot go on: ValueError: 'master_name' transport option must be specified."
    world.sending = None
    world.assert_next_run_is_published()


def test_a_gate_that_raises_publishes_nothing_and_frees_the_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ArithmeticError("no histogram")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "check_gates", fail)
        failed = world.finish(world.request())
    assert (failed.state, failed.error) == (RunState.FAILED, "not published: ArithmeticError: no histogram")
    assert world.table.pointer().current is None
    world.assert_next_run_is_published()


@pytest.mark.parametrize("step", ["is_published", "are_loading"])
def test_a_look_at_what_was_scored_that_raises_ends_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = world.request()
    world.runs.reconcile()
    while world.queue:
        world.runs.score(*world.queue.pop())

    def fail(*_: object) -> None:
        raise ValueError("a manifest that cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(f"inference.batch.publishing.RunTables.{step}", fail)
        for _ in range(3):
            world.runs.reconcile("m")
    failed = world.runs.show(run.run_id)
    assert failed.state is RunState.FAILED
    assert "a manifest that cannot be read" in (failed.error or "")
    world.assert_next_run_is_published()


def test_what_fails_after_the_flip_takes_nothing_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a driver of its own mind")

    monkeypatch.setattr("inference.batch.publishing.Publisher._close", fail)
    done = world.finish(world.request())
    assert done.state is RunState.PUBLISHED
    assert done.error == "published, but what follows failed: RuntimeError: a driver of its own mind"
    world.assert_serves(2.0)


@pytest.mark.parametrize("step", ["collect", "unpublished"])
def test_what_cannot_be_tidied_up_keeps_no_run_from_ending(
    world: World, monkeypatch: pytest.MonkeyPatch, logs: list[Any], step: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("an old record")

    monkeypatch.setattr(f"inference.batch.publishing.RunTables.{step}", fail)
    world.assert_next_run_is_published()
    assert sum(line["event"] == "reconcile.failed" and line["model"] == "m" for line in logs) == 1, "told once"


def test_a_plan_that_fails_after_its_generation_was_opened_leaves_none_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = RunTables.open

    def open_and_fail(*arguments: Any, **more: Any) -> None:
        opened(*arguments, **more)
        raise TypeError("no such field")

    with monkeypatch.context() as patch:
        patch.setattr(RunTables, "open", open_and_fail)
        failed = world.finish(world.request())
    assert (failed.state, failed.error) == (RunState.FAILED, "it cannot be planned: TypeError: no such field")
    states = [world.table.generations.state(manifest.number) for manifest in world.table.generations.all()]
    assert GenerationState.LOADING not in states
    world.assert_next_run_is_published()


@pytest.mark.parametrize("bend", [{"state": "dreaming"}, {"created_at": "today"}, {"gates": "["}])
def test_a_record_that_cannot_be_read_hides_no_other_run(world: World, logs: list[Any], bend: dict[str, str]) -> None:
    odd, good = world.finish(world.request()), world.finish(world.request())
    client: Any = world.table._client
    client.hset(KEYS.run(odd.run_id), mapping=bend)
    for _ in range(2):
        assert [run.run_id for run in world.runs.list("m")] == [good.run_id]
    told = [line for line in logs if line["event"] == "run.read.failed"]
    assert [f"the record of run {odd.run_id} cannot be read" in line["error"] for line in told] == [True]
    world.assert_next_run_is_published()


def test_a_timer_goes_on_whatever_a_round_raises_and_tells_it_once(logs: list[Any]) -> None:
    rounds: list[str] = []

    def broken(model: str) -> None:
        rounds.append(model)
        raise TypeError(f"round {'x' if len(rounds) < 4 else 'y'}")

    timer = ModelTimer("reconcile", lambda: ["m"], broken, every_s=0.001)
    timer.start()
    wait_for(lambda: len(rounds) >= 6, "six rounds", 10)
    timer.stop()
    told = [line for line in logs if line["event"] == "reconcile.failed"]
    assert [(line["error"], "exc_info" in line) for line in told] == [
        ("TypeError: round x", True),
        ("TypeError: round y", False),
    ]
