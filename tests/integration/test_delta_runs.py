"""A delta run scores what changed, and publishes what a full run would; over a real Redis, with rows that come and go."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState, RunView, Trigger
from inference.errors import BadInput
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.store.codec import stored_id
from tests.integration.test_runs import KEYS, World, failed_gates
from tests.support.leaks import leaked_keys

pytestmark = pytest.mark.integration

TABLE = KEYS.table(TableKind.PREDICTIONS, "m")
DAY = 1_700_000_000


class DeltaWorld(World):
    """A deployment whose model keeps vectors; `dated`: its table has event times."""

    dated = False

    def configure(self, **batch: Any) -> None:
        own = {
            "rows_per_chunk": 40, "micro_batch_rows": 16, "max_in_flight": 9, "delta": True, "max_drift": 1000.0, **batch,
        }  # fmt: skip
        model = ModelSettings(
            path=self.root / "model",
            features=str(self.root / "t.parquet"),
            event_time_column="at" if self.dated else None,
            batch=BatchSettings(**own),
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
        """Bucket and stored id → row, as it lies in Redis."""
        assert generation is not None
        start = f"{TABLE.generation(generation)}:"
        keys: Any = self.client.keys(f"{start}*")
        assert all(0 < self.client.ttl(key) for key in keys)
        return {
            (key.decode().removeprefix(start), field): row
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
        assert {name: value for name, (value, _) in world.parts(delta).items()} == {
            name: value for name, (value, _) in world.parts(full).items()
        }
        assert len(world.parts(delta)) == len(rows)
        before = theirs


def manifest_time(world: DeltaWorld, run: RunView) -> float:
    manifest = world.table.generations.manifest(run.generation or 0)
    assert manifest is not None
    return manifest.created_at
