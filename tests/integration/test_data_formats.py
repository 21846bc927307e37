"""Two releases side by side over one Redis: what one does not know it leaves alone and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inference.batch import RunState, worker
from inference.errors import Unavailable, UnknownFormat
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import TableKind
from inference.store import AsyncTableReader, GenerationState, Table
from inference.store.records import GENERATION_FORMAT
from inference.stored_data import DATA_FORMAT
from tests.integration.test_runs import KEYS, World
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

TABLE = KEYS.table(TableKind.PREDICTIONS, "m")


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> World:
    """A published generation of e0 … e29."""
    world = World(redis_client, tmp_path)
    world.table.versions.activate(1)
    world.source([f"e{i}" for i in range(30)])
    assert world.finish(world.request()).state is RunState.PUBLISHED
    return world


def rewrite(world: World, number: int, **changes: object) -> None:
    """Have a generation's manifest look as if another release had begun it."""
    key = TABLE.generation(number)
    manifest = json.loads(world.client.hget(key, "manifest") or b"")
    world.client.hset(key, "manifest", json.dumps({**manifest, **changes}))
    # a process that has not read it yet
    world.tables["m"] = world.table = Table(world.client, TABLE, kind=TableKind.PREDICTIONS, model="m")


def untag(world: World, number: int) -> None:
    """Put a generation's rows where an older release did."""
    for key in world.client.keys(TABLE.generation(number) + ":*"):
        world.client.rename(key, key.translate(None, b"{}"))


def current(world: World) -> int:
    number = world.table.pointer().current
    assert number is not None
    return number


async def test_a_newer_generation_is_refused_with_what_to_upgrade_and_never_a_miss(
    world: World, redis_server: RedisServer
) -> None:
    rewrite(world, current(world), format=GENERATION_FORMAT + 1, added_later=True)

    for read in (world.table.read, world.table.read_block):
        with pytest.raises(UnknownFormat, match=r"written in format 3.*knows 1 to 2: upgrade this process"):
            read(["e1"])
    with pytest.raises(UnknownFormat):
        world.table.read_generation(["e1"], current(world))
    async with AsyncClient.from_url(redis_server.url()) as client:
        with pytest.raises(UnknownFormat):
            await AsyncTableReader(client, TABLE).read(["e1"])
    assert issubclass(UnknownFormat, Unavailable)


def test_nothing_is_written_into_a_generation_of_another_release(world: World) -> None:
    world.source(["e1", "e2"])
    run = world.request()
    world.runs.reconcile()
    number = world.runs.show(run.run_id).generation
    assert number is not None
    rewrite(world, number, format=GENERATION_FORMAT + 1)
    manifest = world.table.generations.manifest(number)
    assert manifest is not None
    with pytest.raises(UnknownFormat):
        world.table.generations.write(manifest, pa.array(["e1"]), {"y": np.zeros(1, np.float32)}, np.zeros(1))
    assert world.client.keys(TABLE.generation(number) + ":*") == []


def test_an_older_generation_is_replaced_by_a_run_and_then_removed(world: World) -> None:
    old = current(world)
    untag(world, old)
    rewrite(world, old, format=0)
    with pytest.raises(UnknownFormat, match="let a run of this release replace it"):
        world.table.read(["e1"])

    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert world.answers("e1") == [2.0]
    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert world.table.generations.state(old) is GenerationState.COLLECTING
    assert world.client.keys(TABLE.generation(old) + ":*") == []


def test_a_run_of_another_release_waits_for_it_and_is_not_spoilt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MAX_PAUSE_S", 0.0)
    world.source([f"e{i}" for i in range(40)])
    run = world.request()
    world.runs.reconcile()
    record = KEYS.run(run.run_id)
    assert world.client.hget(record, "format") == str(DATA_FORMAT).encode()
    world.client.hset(record, "format", DATA_FORMAT + 1)
    before = world.model.rows

    world.work()
    world.runs.reconcile()

    assert world.runs.show(run.run_id).state is RunState.RUNNING
    assert world.model.rows == before
    assert "this release knows 1" in (world.client.hget(record, "last_error") or b"").decode()

    world.client.hset(record, "format", DATA_FORMAT)  # the other release takes it up
    assert world.finish(run).state is RunState.PUBLISHED
    assert world.answers("e39") == [78.0]


def test_a_generation_of_the_release_before_is_served_rolled_back_to_and_removed(world: World) -> None:
    old = current(world)
    untag(world, old)
    rewrite(world, old, format=1)
    assert world.answers("e1", "e29") == [2.0, 58.0]

    world.source(["e1"], [5.0])
    world.configure(min_size_ratio=0.0)
    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert world.answers("e1", "e29") == [10.0, None]
    world.runs.rollback("m")
    assert world.answers("e1", "e29") == [2.0, 58.0]

    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert world.finish(world.request()).state is RunState.PUBLISHED
    assert world.client.keys(f"t:p:m:g:{old}:*") == []
