"""Runs over an active set, over a real Redis: the rows that they score, when they score all, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.batch import RunState, RunView
from inference.errors import Conflict
from inference.monitoring.access_log import AccessLog
from inference.monitoring.asked_filters import DAY_S
from inference.redis.clients import REQUEST, Client, open_async_client
from inference.redis.keys import TableKind
from inference.settings import AccessLogSettings, BatchSettings, FunctionFallback, ModelSettings
from tests.integration.test_runs import KEYS, World, failed_gates
from tests.support.leaks import leaked_keys
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

ROWS = 45


class ActiveWorld(World):
    """The model doubles `x`; entity eI has x = I. Left-out entities have features in the feature table."""

    def __init__(self, client: Client, root: Path, url: str) -> None:
        self.url, self.fallbacks = url, []
        super().__init__(client, root)

    def configure(self, **batch: Any) -> None:
        own = {"rows_per_chunk": 10, "micro_batch_rows": 4, "max_in_flight": 3, "feature_table": True, **batch}
        model = ModelSettings(
            path=self.root / "model",
            features=str(self.root / "t.parquet"),
            batch=BatchSettings(**own),
            fallbacks=self.fallbacks,
            access_log=AccessLogSettings(asked_days=30),
        )
        self.settings = self.settings_of(model)
        self.runs = self.make_runs()

    def settings_of(self, model: ModelSettings) -> Any:
        from inference.settings import Settings

        settings = Settings(models={"m": model})
        settings._root = self.root
        return settings

    def ask(self, days_ago: float, ids: Iterable[str], times: int = 1) -> None:
        """Log requests of some days ago."""
        asyncio.run(self._ask(days_ago, list(ids) * times))

    async def _ask(self, days_ago: float, ids: list[str]) -> None:
        at = self.table.now() - days_ago * DAY_S
        async with open_async_client(self.url, REQUEST) as client:
            log = AccessLog(client, KEYS, self.settings.models, clock=lambda: at)
            await log.write({"m": ids})

    def served(self) -> set[str]:
        """The entities of the generation that serves."""
        table = self.table_of(TableKind.PREDICTIONS, "m")
        ids = [f"e{i}" for i in range(ROWS + 10)]
        return {name for name, entry in zip(ids, table.read(ids), strict=True) if entry is not None}

    def publish(self, **request: Any) -> RunView:
        done = self.finish(self.request(**request))
        assert done.state is RunState.PUBLISHED, done.error
        return done


def ids_of(*numbers: int) -> list[str]:
    return [f"e{number}" for number in numbers]


@pytest.fixture
def world(redis_client: Client, redis_server: RedisServer, tmp_path: Path) -> ActiveWorld:
    """A log of ten days: e0 … e9 were asked for in the beginning, e10 … e14 lately; and a full run."""
    world = ActiveWorld(redis_client, tmp_path, redis_server.url())
    world.source(ids_of(*range(ROWS)))
    world.table.versions.activate(1)
    world.ask(10, ids_of(*range(10)))
    world.ask(2, ids_of(*range(10, 14)))
    world.ask(0, ids_of(14))
    world.configure(entities="asked within 3d")
    return world


def test_a_run_scores_who_was_asked_for_in_the_window_once_it_knows_who_is_new(world: ActiveWorld) -> None:
    first = world.publish()
    second = world.publish()

    assert (first.entities_rule, first.rows_outside, len(world.served())) == ("all", 0, 5)
    assert first.entities_note == (
        "a full run, not entities = 'asked within 3d': the run that serves kept no ids, by which new entities are told"
    )
    assert (second.entities_rule, second.rows_outside) == ("asked within 3d", 40)
    assert (second.rows_total, second.rows_done) == (ROWS, ROWS)
    assert second.entities_note == "5 of 45 rows"
    assert world.served() == set(ids_of(*range(10, 15)))
    assert world.model.rows == ROWS + 5
    assert leaked_keys(world.client, KEYS.prefix) == []


def test_the_features_of_all_rows_are_stored_so_that_the_rest_is_answered_on_demand(world: ActiveWorld) -> None:
    world.publish()
    world.publish()

    features = world.table_of(TableKind.FEATURES, "m").read(ids_of(0, 14, 44))

    assert [entry and entry.values["x"] for entry in features] == [0.0, 14.0, 44.0]


def test_entities_that_the_serving_run_did_not_have_are_in(world: ActiveWorld) -> None:
    world.publish()
    world.source(ids_of(*range(ROWS + 2)))

    new = world.publish()

    assert world.served() == set(ids_of(*range(10, 15), 45, 46))
    assert new.entities_note == "7 of 47 rows, 2 of them new"
    assert world.publish().rows_outside == ROWS + 2 - 5  # they are new once


def test_new_entities_may_be_left_out_and_no_run_has_to_know_them(world: ActiveWorld) -> None:
    world.configure(entities="asked within 3d", new_entities=False)

    assert world.publish().rows_outside == 40
    assert world.client.keys("t:r:*:known") == []


def test_without_a_feature_table_the_other_rows_are_not_even_prepared(world: ActiveWorld) -> None:
    world.fallbacks = [FunctionFallback(kind="function", name="f", function="a:b")]
    world.configure(entities="asked within 3d", new_entities=False, feature_table=False)
    world.source(ids_of(*range(ROWS)), [None if i > 20 else float(i) for i in range(ROWS)])

    done = world.publish()

    assert (done.rows_outside, done.rows_quarantined, done.rows_done) == (40, 0, ROWS)
    assert world.answers("e10", "e0") == [20.0, None]


def test_a_change_of_the_rule_is_said_by_the_gates_and_not_taken_for_a_truncated_source(world: ActiveWorld) -> None:
    world.configure(entities="all")
    world.publish()
    world.configure(entities="asked within 3d", new_entities=False)

    smaller = world.publish()
    world.configure(entities="all")
    larger = world.publish()

    details = {gate.name: gate.detail for gate in smaller.gates}
    assert details["coverage"] == "all 5 entities of the active set (asked within 3d) are stored"
    assert details["size"] == "5 entities and 40 outside the active set (asked within 3d) against 45 served now"
    assert {gate.name: gate.detail for gate in larger.gates}["size"] == (
        "45 entities against 5 and 40 outside the active set (asked within 3d) served now"
    )


def test_a_truncated_source_is_refused_when_the_rule_changes_too(world: ActiveWorld) -> None:
    world.configure(entities="all")
    world.publish()
    world.source(ids_of(*range(5, 20)))
    world.configure(entities="asked within 3d", new_entities=False)

    assert failed_gates(world.finish(world.request())) == ["size"]


@pytest.mark.parametrize(
    ("entities", "why"),
    [
        ("asked within 20d", "the access log goes back 10.0 days, and the rule 20"),
        ("hit rate 0.95", "too little traffic: a sample of the last days needs 1,000 requests"),
    ],
)
def test_what_cannot_be_told_yet_is_a_full_run_that_says_so(world: ActiveWorld, entities: str, why: str) -> None:
    world.configure(entities=entities)

    done = world.publish()

    assert (done.entities_rule, done.rows_outside, done.rows_total) == ("all", 0, ROWS)
    assert done.entities_note == f"a full run, not entities = {entities!r}: {why}"
    assert len(world.served()) == ROWS


def test_filters_that_redis_lost_are_a_full_run(world: ActiveWorld) -> None:
    world.publish()
    world.client.delete("t:h:key", "t:h:m:log", *world.client.keys("t:h:m:filter:*"))

    done = world.publish()

    assert (done.entities_rule, done.rows_outside) == ("all", 0)
    assert "Redis lost it" in (done.entities_note or "")


def test_a_set_that_would_leave_out_most_of_yesterdays_requests_is_refused(world: ActiveWorld) -> None:
    world.configure(entities="asked within 3d", new_entities=False)
    before = world.publish()
    world.ask(1, ["e10"], 49)
    world.ask(1, ["0010"], 51)

    refused = world.finish(world.request())

    assert refused.state is RunState.FAILED
    assert refused.error == (
        "entities = 'asked within 3d' leaves out 51% of yesterday's requests: compare the ids of the table with those "
        'that requests name, or set entities = "all"'
    )
    assert world.table.pointer().current == before.generation
    world.ask(1, ["e10"], 2)
    world.publish()


def test_a_set_without_a_row_is_refused(world: ActiveWorld) -> None:
    world.configure(entities="asked within 1d", new_entities=False)
    world.source(ids_of(*range(20, 30)))

    assert "chooses no row" in (world.finish(world.request()).error or "")


def test_a_resumed_run_scores_the_same_rows_whoever_is_asked_for_meanwhile(world: ActiveWorld) -> None:
    world.publish()
    run = world.request()
    world.runs.reconcile()
    world.work(1)
    world.runs.cancel(run.run_id)
    world.ask(0, ids_of(*range(ROWS)))

    world.runs.resume(run.run_id)
    done = world.finish(run)

    assert (done.state, done.rows_outside) == (RunState.PUBLISHED, 40)
    assert world.served() == set(ids_of(*range(10, 15)))


def test_a_run_is_not_resumed_under_another_rule(world: ActiveWorld) -> None:
    run = world.request()
    world.runs.reconcile()
    world.runs.cancel(run.run_id)
    world.configure(entities="asked within 9d")

    with pytest.raises(Conflict, match="entities: 'asked within 3d' is now 'asked within 9d'"):
        world.runs.resume(run.run_id)


def test_after_a_rollback_new_entities_are_those_beyond_the_run_that_serves_again(world: ActiveWorld) -> None:
    world.publish()
    world.publish()
    world.source(ids_of(*range(ROWS + 1)))
    world.publish()
    world.runs.rollback("m")

    assert world.publish().entities_note == "6 of 46 rows, 1 of them new"
    assert len(world.client.keys("t:r:*:known")) == 2  # of the run that serves now, and of the one before


def test_a_hit_rate_scores_those_who_get_so_many_requests(world: ActiveWorld) -> None:
    world.configure(entities="hit rate 0.9", new_entities=False)
    for day in range(9, 0, -1):
        world.ask(day, ids_of(*range(9)), 40)
        world.ask(day, ids_of(20 + day, 30 + day), 10)

    done = world.publish()

    assert done.entities_rule == "hit rate 0.9"
    assert set(ids_of(*range(9))) <= world.served()
    assert done.rows_outside > 20
    assert done.entities_note == ("9 of 45 rows; such a set would have answered 94.5% of the last days' requests")
    assert done.entities_share == pytest.approx(0.945, abs=0.001)


def test_a_hit_rate_that_no_set_reaches_is_a_full_run(world: ActiveWorld) -> None:
    world.configure(entities="hit rate 0.9", new_entities=False)
    for day in range(9, 0, -1):
        world.ask(day, ids_of(*range(4 * day, 4 * day + 4)), 100)

    done = world.publish()

    assert done.rows_outside == 0
    assert "entities that were asked for before get only 0.1% of the requests" in (done.entities_note or "")


def test_history_tables_have_active_sets_too(world: ActiveWorld) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array(np.arange(90), pa.timestamp("s", "UTC"))
    ids = ids_of(*range(ROWS)) * 2
    table = {"entity_id": ids, "x": pa.array(np.arange(90), pa.float32()), "at": times}
    pq.write_table(pa.table(table), world.root / "t.parquet", row_group_size=12)
    own = world.settings.models["m"].model_copy(update={"event_time_column": "at", "rows": "newest"})
    world.settings = world.settings_of(own)
    world.runs = world.make_runs()

    world.publish()
    done = world.publish()

    assert (done.rows_total, done.rows_outside) == (ROWS, 40)
    assert world.answers("e10", "e0") == [110.0, None]


def test_a_partial_run_scores_the_rows_that_it_is_asked_to(world: ActiveWorld) -> None:
    world.publish()

    done = world.publish(entities=ids_of(1, 2))

    assert (done.rows_done, done.rows_outside, done.entities_note) == (2, 0, None)
