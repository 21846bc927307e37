"""Runs over some rows of a table, over a real Redis: into the overlay, beside the generation that serves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState, RunView, Trigger
from inference.errors import BadInput, Conflict
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from inference.serving.answers import answer_stored
from inference.store import Origin
from tests.integration.test_runs import KEYS, World, failed_gates
from tests.support.leaks import leaked_keys

pytestmark = pytest.mark.integration


class Killed(BaseException):
    """No handler of errors sees a kill."""


HOURS_AGO = [48, 30, 24, 20, 10, 5, 3, 1]


class PartialWorld(World):
    """The model doubles `x`; `at` says when a row changed."""

    def __init__(self, client: Client, root: Path) -> None:
        super().__init__(client, root)
        self.timed(True)

    def timed(self, timed: bool) -> None:
        own = self.settings.models["m"].model_copy(update={"event_time_column": "at" if timed else None})
        self.settings.models["m"] = own
        self.runs = self.make_runs()

    def rows(self, ids: list[Any], x: list[float], hours_ago: list[float | None] | None = None, **write: Any) -> None:
        now = datetime.now(UTC)
        times = [None if h is None else now - timedelta(hours=h) for h in hours_ago or [1.0] * len(ids)]
        table = {"entity_id": ids, "x": pa.array(x, pa.float32()), "at": pa.array(times, pa.timestamp("us", "UTC"))}
        pq.write_table(pa.table(table), self.root / "t.parquet", **{"row_group_size": 3, **write})


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> PartialWorld:
    """A published generation of e0 … e7 with x = 0 … 7, then a table in which every x is 100 more."""
    world = PartialWorld(redis_client, tmp_path)
    ids = [f"e{i}" for i in range(8)]
    world.rows(ids, [float(i) for i in range(8)], [72.0] * 8)
    world.table.versions.activate(1)
    assert world.finish(world.request()).state is RunState.PUBLISHED
    world.rows(ids, [100.0 + i for i in range(8)], HOURS_AGO)
    return world


def ended(world: World, run: RunView) -> RunView:
    done = world.finish(run)
    assert done.state is RunState.PUBLISHED, done.error
    return done


def test_some_entities_are_scored_anew_and_no_generation_is_published(world: PartialWorld) -> None:
    before = world.table.pointer()

    done = ended(world, world.request(entities=["e1", "e6", "e1"]))

    assert (done.rows_total, done.rows_done, done.entities_asked, done.generation) == (2, 2, 2, None)
    assert world.answers("e0", "e1", "e6", "e7") == [0.0, 202.0, 212.0, 14.0]
    assert world.table.pointer() == before
    assert [gate.name for gate in done.gates] == ["entities", "coverage", "quarantine", "finite", "version"]
    assert failed_gates(done) == []


def test_its_answers_are_hits_of_the_batch_with_their_own_age_and_expire(world: PartialWorld) -> None:
    ended(world, world.request(entities=["e6"]))

    entry = world.table.read(["e6"])[0]

    assert entry is not None
    assert (entry.origin, entry.generation, entry.model_version) == (Origin.BATCH, None, 1)
    answer = answer_stored("m", "e6", entry)
    assert (answer.source, answer.outcome) == ("batch", "hit_batch")
    assert entry.as_of == pytest.approx(world.table.now() - 3 * 3600, abs=5)
    overlay = world.client.keys("t:p:m:o:*")
    assert len(overlay) == 1
    assert 0 < world.client.ttl(overlay[0]) <= 7 * 86400


def test_rows_that_changed_since_an_instant_are_scored(world: PartialWorld) -> None:
    done = ended(world, world.request(since="6h"))

    assert (done.rows_total, done.since) == (3, pytest.approx(world.table.now() - 6 * 3600, abs=10))
    assert world.answers("e4", "e5", "e6", "e7") == [8.0, 210.0, 212.0, 214.0]


def test_an_iso_instant_without_a_zone_is_utc(world: PartialWorld) -> None:
    since = (datetime.now(UTC) - timedelta(hours=22)).replace(tzinfo=None).isoformat()

    assert ended(world, world.request(since=since)).rows_total == 5


def test_both_together_mean_rows_that_meet_both(world: PartialWorld) -> None:
    done = ended(world, world.request(entities=["e0", "e7"], since="6h"))

    assert done.rows_total == 1
    assert world.answers("e0", "e7") == [0.0, 214.0]


def test_row_groups_without_newer_rows_are_not_read(world: PartialWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    from inference.batch import selection

    def read_slices(files: Any, slices: Any, **how: Any) -> Any:
        read.extend(part.row_group for part in slices)
        return original(files, slices, **how)

    original = selection.read_slices
    monkeypatch.setattr(selection, "read_slices", read_slices)

    ended(world, world.request(since="6h"))

    assert read == [1, 2]


def test_nothing_newer_is_a_run_that_is_over_at_once(world: PartialWorld) -> None:
    done = ended(world, world.request(since="30m"))

    assert (done.rows_total, done.chunks_total) == (0, 0)
    assert world.client.keys("t:p:m:o:*") == []


def test_ids_that_the_table_lacks_are_counted_and_named_and_the_others_scored(world: PartialWorld) -> None:
    done = ended(world, world.request(entities=["e1", "x1", "x2"]))

    assert done.rows_total == 1
    assert done.gates[0].detail == "2 of 3 entities are not in the table, such as 'x1', 'x2'"


def test_a_list_of_which_the_table_has_nothing_starts_nothing(world: PartialWorld) -> None:
    done = world.finish(world.request(entities=["x1"]))

    assert done.state is RunState.FAILED
    assert "1 of 1 entities are not in the table, such as 'x1'" in (done.error or "")
    assert world.queue == []


def test_an_entity_with_two_rows_is_refused_by_name_before_anything_starts(world: PartialWorld) -> None:
    world.rows(["e0", "e1", "e2", "e3", "e1"], [1.0] * 5)

    refused = world.finish(world.request(entities=["e0", "e1"]))

    assert "1 row repeats an entity id, such as 'e1'" in (refused.error or "")
    assert world.client.keys("t:p:m:o:*") == []
    assert ended(world, world.request(entities=["e0", "e3"])).rows_total == 2


def test_a_newer_answer_on_demand_is_not_overwritten(world: PartialWorld) -> None:
    import numpy as np

    from inference.schema import DType, TensorSpec

    fields = [TensorSpec("y", DType.FLOAT32)]
    now = world.table.now()
    world.table.overlay.upsert(
        ["e1"], fields, {"y": np.array([5.0], np.float32)}, as_of=np.array([now]), computed_at=now,
        model_version=1, origin=Origin.REALTIME, keep_s=60,
    )  # fmt: skip

    ended(world, world.request(entities=["e1"]))

    assert world.answers("e1") == [5.0]


def test_a_later_whole_run_wins_again(world: PartialWorld) -> None:
    ended(world, world.request(entities=["e1"]))
    world.rows([f"e{i}" for i in range(8)], [1000.0 + i for i in range(8)], [0.0] * 8)

    ended(world, world.request())

    assert world.answers("e1") == [2002.0]


def test_nothing_is_served_of_a_run_that_a_gate_refuses_unless_it_is_forced(world: PartialWorld) -> None:
    world.rows(["e0", "e1"], [1.0, float("nan")])

    done = world.finish(world.request(entities=["e0", "e1"]))

    assert done.state is RunState.FAILED
    assert "not published: quarantine: 1 of 2 rows cannot be scored" in (done.error or "")
    assert world.answers("e0", "e1") == [0.0, 2.0]
    assert world.client.keys("t:p:m:o:*") == []

    world.runs.publish(done.run_id, force=True, by="ada")

    assert ended(world, done).forced_by == "ada"
    assert world.answers("e0", "e1") == [2.0, 2.0]


def test_nothing_is_served_before_all_is_scored(world: PartialWorld) -> None:
    ids = [f"n{i}" for i in range(30)]
    world.rows(ids, [1.0] * 30)
    run = world.request(entities=ids)
    world.runs.reconcile()
    world.work(2)

    assert world.runs.show(run.run_id).chunks_done == 2
    assert world.answers(*ids) == [None] * 30
    ended(world, run)
    assert world.answers(*ids) == [2.0] * 30


def test_a_process_killed_while_it_moves_the_rows_is_made_good(world: PartialWorld) -> None:
    ids = [f"n{i}" for i in range(3_000)]
    world.configure(rows_per_chunk=1_000)
    world.timed(True)
    world.rows(ids, [1.0] * 3_000, row_group_size=1_000)
    run = world.request(entities=ids)
    put, calls = world.table.overlay.put, 0

    def killed(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        put(*arguments)

    world.table.overlay.put = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        world.finish(run)
    assert world.runs.show(run.run_id).state is RunState.PUBLISHING
    assert 0 < world.answers(*ids).count(2.0) < 3_000

    world.table.overlay.put = put  # type: ignore[method-assign]
    ended(world, run)
    assert world.answers(*ids) == [2.0] * 3_000


def test_a_process_killed_after_it_moved_the_rows_is_made_good(world: PartialWorld) -> None:
    run = world.request(entities=["e1"])
    world.runs.reconcile()
    world.work()
    staged = world.table.generations.all()[-1]
    assert staged.run_id == run.run_id
    world.table.generations.move_to_overlay(staged.number, keep_s=3600)  # and here it died

    assert ended(world, run).rows_done == 1
    assert world.answers("e1") == [202.0]


def test_the_rows_that_were_staged_are_collected(world: PartialWorld) -> None:
    ended(world, world.request(entities=["e1"]))
    world.runs.reconcile()
    staged = world.table.generations.all()[-1].number

    assert world.client.keys(f"t:p:m:g:{staged}:*") == []
    world.client.hset(f"t:p:m:g:{staged}", "sweep_due_at", 1)
    world.runs.reconcile()
    assert world.client.keys(f"t:p:m:g:{staged}*") == []
    assert leaked_keys(world.client, "t") == []


def test_the_features_of_the_rows_are_moved_with_them(world: PartialWorld) -> None:
    world.configure(feature_table=True)
    world.timed(True)
    ended(world, world.request(entities=["e1"]))

    stored = world.table_of(TableKind.FEATURES, "m").read(["e1", "e2"])

    assert [entry and entry.values for entry in stored] == [{"x": 101.0}, None]


def test_many_rows_make_many_chunks_and_a_cancelled_run_goes_on_with_what_is_left(world: PartialWorld) -> None:
    ids = [f"n{i}" for i in range(100)]
    world.rows(ids, [float(i) for i in range(100)], row_group_size=40)
    asked = ids[::2]
    run = world.request(entities=asked)
    world.runs.reconcile()
    world.work(2)
    before = world.model.rows
    world.runs.cancel(run.run_id)
    world.queue.clear()

    world.runs.resume(run.run_id)
    done = ended(world, run)

    assert (done.chunks_total, done.rows_done, done.rows_total) == (5, 50, 50)
    assert world.model.rows == before + 50 - 20
    assert world.answers(*ids) == [2.0 * i if i % 2 == 0 else None for i in range(100)]


def test_a_run_that_was_cancelled_before_its_plan_still_knows_what_it_was_asked_for(world: PartialWorld) -> None:
    run = world.request(entities=["e1"])
    world.runs.cancel(run.run_id)

    world.runs.resume(run.run_id)

    assert ended(world, run).rows_total == 1


def test_one_run_of_a_model_at_a_time_and_a_refused_one_leaves_nothing(world: PartialWorld) -> None:
    run = world.request()

    with pytest.raises(Conflict, match="in progress"):
        world.request(entities=["e1"])

    assert world.client.keys("t:r:*:entities") == []
    ended(world, run)


def test_nothing_of_a_partial_run_outlives_it_for_ever(world: PartialWorld) -> None:
    run = ended(world, world.request(entities=["e1"], since="60h"))

    assert world.client.keys("t:r:*:entities") == []
    assert [key for key in world.client.keys(f"t:r:{run.run_id}*") if world.client.ttl(key) < 0] == []
    assert world.client.exists(KEYS.active_run("m")) == 0


def test_a_source_that_is_replaced_in_the_middle_fails_it_by_name(world: PartialWorld) -> None:
    run = world.request(since="60h")
    world.runs.reconcile()
    world.rows([f"e{i}" for i in range(8)], [7.0] * 8)

    world.work()

    assert "t.parquet was replaced while the run was reading it" in (world.runs.show(run.run_id).error or "")
    assert world.client.keys("t:p:m:o:*") == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"since": "soon"}, r"since 'soon' is no instant: write 2026-01-31T06:00:00Z, or a duration such as 6h"),
        ({"since": "2999-01-01"}, "lies in the future"),
        ({"entities": []}, "entities is empty"),
        ({"entities": ["a", ""]}, "entity 2: entity_id is empty"),
        ({"entities": ["a\nb"]}, "entity 1: .*control characters"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(world: PartialWorld, asked: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        world.request(**asked)

    assert world.runs.list("m", 1)[0].state is RunState.PUBLISHED


def test_answers_of_a_version_that_does_not_serve_any_more_are_no_success(world: PartialWorld) -> None:
    run = world.request(entities=["e1"])
    world.runs.reconcile()
    world.table.versions.activate(2)

    done = world.finish(run)

    assert done.error == "not published: version: model version 1 does not serve now (2 does)"


def test_since_needs_an_event_time_column(world: PartialWorld) -> None:
    world.timed(False)

    with pytest.raises(BadInput, match=r"since needs models\.m\.event_time_column: set it to the column"):
        world.runs.request("m", trigger=Trigger.API, since="6h")


def test_without_an_event_time_a_row_is_as_old_as_its_run(world: PartialWorld) -> None:
    world.timed(False)

    ended(world, world.request(entities=["e0"]))

    entry = world.table.read(["e0"])[0]
    assert entry is not None
    assert entry.values["y"] == 200.0
    assert entry.as_of == pytest.approx(world.table.now(), abs=5)
