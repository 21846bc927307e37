"""Runs that wait before their publication, runs whose decisions flip, and shadow runs, over a real Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from inference.batch import RunState
from inference.errors import BadInput, Conflict
from inference.models import LoadedModel, ModelRegistry
from inference.redis.clients import Client
from inference.schema import Block
from inference.store import GenerationState
from tests.integration.test_runs import KEYS, Doubling, World, failed_gates, record
from tests.support.leaks import leaked_keys

pytestmark = pytest.mark.integration

ROWS = 45
IDS = [f"e{number}" for number in range(ROWS)]


class Versions:
    """Loaded models by version: the first one doubles, another one multiplies by its number and 2."""

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        loaded = Doubling()
        loaded.record = record(version or 1)
        factor = 2 * (version or 1)

        def predict(inputs: Block) -> Block:
            return {"y": inputs["x"] * factor}

        loaded.predict = predict  # type: ignore[method-assign]  # a double
        return loaded.get(model, version)


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> World:
    """A published generation with x = 0 … 44, and a table in which every x is one more."""
    world = World(redis_client, tmp_path)
    world.model = cast("Doubling", Versions())
    world.configure(parquet_path=None, max_drift=1000.0)
    world.source(IDS)
    assert world.finish(world.request()).state is RunState.PUBLISHED
    registry = ModelRegistry(redis_client, KEYS)
    for version in (1, 4):
        registry.put("m", record(version))
    registry.activate("m", 1)
    shift(world, 1.0)
    return world


def shift(world: World, by: float) -> None:
    world.source(IDS, [number + by for number in range(ROWS)])


def hold(world: World, **batch: object) -> None:
    world.configure(parquet_path=None, max_drift=1000.0, hold=True, **batch)


def test_a_held_run_serves_only_once_somebody_publishes_it(world: World) -> None:
    hold(world)
    before = world.table.pointer()
    held = world.finish(world.request())
    assert (held.state, held.hold, held.finished_at is None) == (RunState.HELD, True, False)
    assert failed_gates(held) == []
    assert world.table.pointer() == before
    assert world.answers("e0", "e44") == [0.0, 88.0]
    assert world.table.generations.state(held.generation or 0) is GenerationState.LOADING
    kept = world.runs.kept_diff(held.run_id)
    assert kept is not None
    assert (kept.rows_both, kept.outputs[0].moved) == (ROWS, 1.0)

    world.runs.reconcile()
    world.runs.publish(held.run_id, by="ann")
    assert world.finish(held).state is RunState.PUBLISHED
    done = world.runs.show(held.run_id)
    assert (done.approved_by, done.forced, done.error) == ("ann", False, None)
    assert world.answers("e0", "e44") == [2.0, 90.0]
    assert leaked_keys(world.client, "t") == []


def test_a_run_is_held_on_request_and_a_held_run_is_cancelled_and_resumed(world: World) -> None:
    held = world.finish(world.request(hold=True))
    assert held.state is RunState.HELD
    assert world.runs.cancel(held.run_id).state is RunState.CANCELLED
    world.runs.resume(held.run_id)
    assert world.finish(held).state is RunState.HELD  # it was not approved
    assert leaked_keys(world.client, "t") == []


def test_a_held_run_blocks_no_other_and_a_newer_whole_run_takes_its_place(world: World) -> None:
    hold(world)
    first = world.finish(world.request())
    partial = world.finish(world.request(entities=["e1"]))
    assert partial.state is RunState.PUBLISHED
    assert world.runs.show(first.run_id).state is RunState.HELD

    second = world.request()
    world.runs.reconcile()
    assert world.runs.show(first.run_id).state is RunState.HELD  # the newer one may still fail
    with pytest.raises(Conflict, match=second.run_id):
        world.runs.publish(first.run_id)
    assert world.finish(second).state is RunState.HELD
    replaced = world.runs.show(first.run_id)
    assert (replaced.state, replaced.error) == (RunState.CANCELLED, f"run {second.run_id} took its place")
    world.runs.reconcile()
    with pytest.raises(Conflict, match="start a new run"):
        world.runs.resume(first.run_id)
    assert leaked_keys(world.client, "t") == []


def test_a_newer_run_that_fails_leaves_the_held_one(world: World) -> None:
    hold(world)
    held = world.finish(world.request())
    world.source(IDS[:3])
    assert world.finish(world.request()).state is RunState.FAILED
    world.runs.reconcile()
    world.runs.publish(held.run_id)
    assert world.finish(held).state is RunState.PUBLISHED


@pytest.mark.parametrize(("limit", "said"), [("resumable", "`resumable`"), ("keep", "`keep`")])
def test_a_held_run_that_nobody_publishes_ends_by_itself(world: World, limit: str, said: str) -> None:
    hold(world)
    held = world.finish(world.request())
    hold(world, **{limit: 0.001})
    world.runs.reconcile()
    ended = world.runs.show(held.run_id)
    assert ended.state is RunState.CANCELLED
    assert said in str(ended.error)
    with pytest.raises(Conflict, match="start a new run"):
        world.runs.resume(held.run_id)
    assert leaked_keys(world.client, "t") == []


def test_an_approved_run_must_pass_its_gates_again(world: World) -> None:
    hold(world)
    held = world.finish(world.request())
    world.table.versions.activate(1, force=True)
    world.client.hset(KEYS.table(world.table._kind, "m").pointer, "held", "1")  # as a rollback does
    world.runs.publish(held.run_id)
    refused = world.finish(held)
    assert (refused.state, failed_gates(refused)) == (RunState.FAILED, ["version"])
    world.runs.publish(held.run_id, force=True, by="ann")
    assert world.finish(held).state is RunState.PUBLISHED


def test_a_run_whose_decisions_flip_too_often_is_not_published(world: World) -> None:
    world.configure(parquet_path=None, max_drift=1000.0, max_flips=0.02, flips_threshold=40.0)
    one_flips = world.finish(world.request())  # e19: 38 → 40, one of 45
    assert (one_flips.state, failed_gates(one_flips)) == (RunState.FAILED, ["flips"])
    assert "y 2.2222% (max_flips is 0.02)" in str(one_flips.error)
    world.configure(parquet_path=None, max_drift=1000.0, max_flips=0.03, flips_threshold=40.0)
    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_a_gate_of_flips_without_a_threshold_lets_no_run_of_numbers_pass(world: World) -> None:
    world.configure(parquet_path=None, max_drift=1000.0, max_flips=0.5)
    refused = world.finish(world.request())
    assert failed_gates(refused) == ["flips"]
    assert "numbers need flips_threshold" in str(refused.error)


def test_the_first_run_of_all_has_nothing_to_compare_with(redis_client: Client, tmp_path: Path) -> None:
    world = World(redis_client, tmp_path)
    world.source(IDS)
    world.configure(parquet_path=None, hold=True, max_flips=0.0, flips_threshold=1.0)
    held = world.finish(world.request())
    assert held.state is RunState.HELD
    with pytest.raises(Conflict, match="nothing serves"):
        world.runs.diff(held.run_id)


def test_a_shadow_run_only_compares(world: World) -> None:
    hold(world)
    held = world.finish(world.request())
    pointer, histogram = world.table.pointer(), world.runs._ledger.histogram(held.run_id)
    shadow = world.finish(world.request(model_version=4, shadow=True))
    assert (shadow.state, shadow.shadow, shadow.model_version, shadow.error) == (RunState.COMPARED, True, 4, None)
    assert world.table.pointer() == pointer
    assert world.runs.show(held.run_id).state is RunState.HELD
    assert world.runs._ledger.histogram(held.run_id) == histogram
    assert world.answers("e0", "e44") == [0.0, 88.0]

    world.runs.reconcile()  # gives its rows up
    assert world.table.generations.state(shadow.generation or 0) in (GenerationState.COLLECTING, None)
    diff = world.runs.diff(shadow.run_id)
    assert (diff.is_kept, diff.model_version, diff.against_version) == (True, 4, 1)
    assert diff.outputs[0].movers[0].id == "e44"
    assert diff.outputs[0].movers[0].after == 8 * 45
    for verb in (world.runs.publish, world.runs.resume, world.runs.cancel):
        with pytest.raises(Conflict, match="compared"):
            verb(shadow.run_id)
    assert leaked_keys(world.client, "t") == []


def test_a_run_of_the_schedule_takes_the_place_of_a_shadow_run(world: World) -> None:
    shadow = world.request(model_version=4, shadow=True)
    world.runs.reconcile()
    with pytest.raises(Conflict, match=shadow.run_id):
        world.request()
    due = world.request(slot="2026-01-31T03:00:00Z")
    ended = world.runs.show(shadow.run_id)
    assert (ended.state, str(ended.error).split(" of ")[0]) == (RunState.CANCELLED, f"run {due.run_id}")
    assert world.finish(due).state is RunState.PUBLISHED
    with pytest.raises(Conflict, match="was served by run"):
        world.request(slot="2026-01-31T03:00:00Z")
    assert leaked_keys(world.client, "t") == []


def test_a_shadow_run_writes_no_files_and_no_features(world: World, tmp_path: Path) -> None:
    world.configure(parquet_path="out", feature_table=True)
    shadow = world.finish(world.request(model_version=4, shadow=True))
    assert (shadow.state, shadow.feature_generation) == (RunState.COMPARED, None)
    assert not (tmp_path / "out").exists()


def test_a_shadow_run_of_other_outputs_says_so_before_it_scores(world: World) -> None:
    registry = ModelRegistry(world.client, KEYS)
    signature = replace(record().signature, outputs=(replace(record().signature.outputs[0], name="z"),))
    registry.put("m", replace(record(5), signature=signature))
    other = world.finish(world.request(model_version=5, shadow=True))
    assert (other.state, other.rows_done) == (RunState.FAILED, 0)
    assert "version 5 predicts other outputs than what serves: 'z' float32, and there 'y' float32" in str(other.error)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"shadow": True}, "model_version"),
        ({"model_version": 4}, "model_version"),
        ({"shadow": True, "model_version": 4, "hold": True}, "hold"),
        ({"shadow": True, "model_version": 4, "since": "1h"}, "shadow"),
        ({"hold": True, "entities": ["e1"]}, "hold"),
    ],
)
def test_options_that_exclude_each_other_are_refused(world: World, options: dict[str, object], field: str) -> None:
    with pytest.raises(BadInput) as error:
        world.request(**options)
    assert error.value.field == field
    assert world.runs.in_progress("m") is None
