"""Somebody who may write to Redis changes what stands there of runs: workers touch no other files for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState
from inference.errors import NotFound, SourceError, UnknownFormat
from inference.redis.clients import Client
from inference.sources import open_source
from tests.integration.test_runs import KEYS, World

pytestmark = pytest.mark.integration

Forge = Callable[[World, str, Path], None]


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> World:
    (tmp_path / "home").mkdir()
    world = World(redis_client, tmp_path / "home")
    world.source([f"e{i}" for i in range(15)] + [None])
    world.configure(rows_per_chunk=10, max_quarantined_fraction=1.0)
    return world


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that no setting names, with a table that looks like the model's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    table = pa.table({"entity_id": [f"s{i}" for i in range(16)], "x": pa.array([1.0] * 16, pa.float32())})
    pq.write_table(table, folder / "secret.parquet")
    return folder


def set_field(name: str, value: Callable[[Path], str]) -> Forge:
    return lambda world, run_id, elsewhere: world.client.hset(KEYS.run(run_id), name, value(elsewhere)) and None


def name_another_file(world: World, run_id: str, elsewhere: Path) -> None:
    file = open_source(str(elsewhere / "secret.parquet")).files[0]
    world.client.hset(KEYS.run_part(run_id, "plan"), "f0", json.dumps(file.to_json()))


def name_a_link_among_tables(world: World, run_id: str, elsewhere: Path) -> None:
    (world.root / "linked.parquet").symlink_to(elsewhere / "secret.parquet")
    file = open_source(str(world.root / "linked.parquet")).files[0]
    world.client.hset(KEYS.run_part(run_id, "plan"), "f0", json.dumps(file.to_json()))


FORGERIES: dict[str, Forge] = {
    "parquet_folder": set_field("parquet_folder", str),
    "parquet_folder, a bucket": set_field("parquet_folder", lambda _: "s3://bucket/table"),
    "source": set_field("source", lambda folder: str(folder / "secret.parquet")),
    "source, a bucket": set_field("source", lambda _: "s3://bucket/table"),
    "plan": name_another_file,
    "plan, a link": name_a_link_among_tables,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_running_run_whose_record_or_plan_leads_elsewhere_fails_and_touches_nothing(
    world: World, elsewhere: Path, name: str
) -> None:
    before = sorted(elsewhere.rglob("*"))
    run = world.request()
    world.runs.reconcile()
    FORGERIES[name](world, run.run_id, elsewhere)

    done = world.finish(run)

    assert done.state is RunState.FAILED
    assert str(elsewhere) not in str(done.error)
    assert "start a new run" in str(done.error)
    assert sorted(elsewhere.rglob("*")) == before
    assert world.answers("s1", "e1") == [None, None]
    assert world.finish(world.request()).state is RunState.PUBLISHED  # the next is not held up


@pytest.mark.parametrize("damage", ["{", "[]", '{"rows": "x", "bad_rows": []}', '{"bad_rows": [7]}'])
def test_a_run_whose_results_cannot_be_read_fails_and_the_next_is_not_held_up(world: World, damage: str) -> None:
    run = world.request()
    world.runs.reconcile()
    world.work()
    world.client.hset(KEYS.run_part(run.run_id, "done"), "0", damage)

    done = world.finish(run)

    assert done.state is RunState.FAILED
    assert str(done.error).startswith("not published: ")
    assert world.finish(world.request()).state is RunState.PUBLISHED


@pytest.mark.parametrize("damage", ["{", "[[0]]", '[["0", 0, 0, 10]]', "[[0, 0, 0, 10, 7]]"])
def test_a_run_whose_plan_cannot_be_read_fails_and_the_next_is_not_held_up(world: World, damage: str) -> None:
    run = world.request()
    world.runs.reconcile()
    world.client.hset(KEYS.run_part(run.run_id, "plan"), "0", damage)

    done = world.finish(run)

    assert done.state is RunState.FAILED
    assert "cannot be read" in str(done.error)
    assert world.finish(world.request()).state is RunState.PUBLISHED


def test_rows_that_are_left_out_go_where_the_settings_say_whatever_the_record_says(
    world: World, elsewhere: Path
) -> None:
    before = sorted(elsewhere.rglob("*"))
    run = world.request()
    world.client.hset(KEYS.run(run.run_id), "quarantine_folder", str(elsewhere))

    assert world.finish(run).state is RunState.PUBLISHED

    assert [part.name for part in (world.root / ".forecache/quarantine" / run.run_id).iterdir()] != []
    assert sorted(elsewhere.rglob("*")) == before


def test_a_queued_run_does_not_look_at_a_source_that_no_setting_leads_to(world: World, elsewhere: Path) -> None:
    run = world.request()
    world.client.hset(KEYS.run(run.run_id), "source", str(elsewhere / "secret.parquet"))

    done = world.finish(run)

    assert done.state is RunState.FAILED
    assert "outside the folder that models.m.features has" in str(done.error)


def test_a_run_is_not_taken_up_again_over_another_source(world: World, elsewhere: Path) -> None:
    run = world.request()
    world.runs.reconcile()
    world.runs.cancel(run.run_id)
    world.client.hset(KEYS.run(run.run_id), "source", str(elsewhere / "secret.parquet"))

    with pytest.raises(SourceError, match="outside the folder"):
        world.runs.resume(run.run_id)


def test_no_quarantine_is_removed_but_those_of_the_models_runs(world: World, elsewhere: Path) -> None:
    (elsewhere / "part-000001.parquet").write_bytes(b"theirs")
    due = KEYS.quarantines("m")
    id_ = "m-20260101T000000-000000"
    forged = [
        f"nosuchrun {elsewhere}", f"{id_} {elsewhere}", f"{id_} s3://bucket/table", f"../../{id_} {elsewhere}",
        f"m-20269999T000000-000000 {elsewhere}", f"x {elsewhere}", "", " ", str(elsewhere),
    ]  # fmt: skip
    world.client.zadd(due, dict.fromkeys([*forged, b"\xff \xfe"], 1.0))

    world.runs.reconcile()

    assert (elsewhere / "part-000001.parquet").read_bytes() == b"theirs"
    assert world.client.zcard(due) == 0


@pytest.mark.parametrize("run_id", ["../../elsewhere", "a/b", "..", "", "a\nb", "x" * 200, " m-1"])
def test_a_run_cannot_have_an_id_that_climbs_out_of_a_folder_or_ends_a_line(world: World, run_id: str) -> None:
    run = world.request()
    record = world.client.hgetall(KEYS.run(run.run_id))
    world.client.hset(KEYS.run(run_id), mapping={**record, b"run_id": run_id, b"state": "running"})

    with pytest.raises(NotFound):
        world.runs.show(run_id)
    world.runs.score(run_id, 0)  # drops it
    assert sorted(path.name for path in world.root.iterdir()) == ["t.parquet"]


def test_a_record_that_tells_another_runs_id_is_refused(world: World) -> None:
    run = world.request()
    world.client.hset(KEYS.run(run.run_id), "run_id", "../../elsewhere")

    with pytest.raises(UnknownFormat):
        world.runs.show(run.run_id)
    world.client.hset(KEYS.run(run.run_id), "run_id", "m-another")
    with pytest.raises(UnknownFormat, match="of another run"):
        world.runs.show(run.run_id)


def test_a_run_that_nobody_can_have_asked_for_hides_no_others(world: World) -> None:
    run = world.finish(world.request())
    world.client.zadd(KEYS.runs("m"), {"../../x": 9e9, b"\xff": 9e9, "a\nb": 9e9, "gone": 9e9, "rubbish": 9e9})
    world.client.hset(KEYS.run("rubbish"), mapping={"run_id": "rubbish", "state": "no"})

    assert [one.run_id for one in world.runs.list("m")] == [run.run_id]
