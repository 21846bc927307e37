"""A delta run reads only the rows that a table says were written, and publishes what a full run would."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from inference.batch import RunState, RunView
from inference.batch.ledger import Ledger
from inference.redis.clients import Client
from inference.settings import BatchSettings, ModelSettings, Settings
from tests.integration.test_delta_runs import DAY, DeltaWorld, manifest_time, numbered
from tests.integration.test_runs import KEYS
from tests.support.lake_tables import catalog_properties, new_catalog

pytestmark = pytest.mark.integration

FEED = {"delta.enableChangeDataFeed": "true"}
Rows = dict[str, tuple[float | None, int | None]]


def arrow(rows: Rows) -> pa.Table:
    at = pa.array([None if at is None else at * 10**6 for _, at in rows.values()], pa.timestamp("us", "UTC"))
    values = pa.array([value for value, _ in rows.values()], pa.float32())
    return pa.table({"entity_id": pa.array(rows, pa.string()), "x": values, "at": at})


class LakeWorld(DeltaWorld):
    """A deployment over a Delta table, or another source that `features` names."""

    features = ""

    def configure(self, **batch: Any) -> None:
        own = {"rows_per_chunk": 40, "micro_batch_rows": 16, "max_in_flight": 9, "delta": True, "max_drift": 1e3}
        model = ModelSettings(
            path=self.root / "model",
            features=self.features or f"delta:{self.root}/lake",
            event_time_column="at" if self.dated else None,
            batch=BatchSettings(**{**own, **batch}),
        )
        self.settings = Settings(models={"m": model})
        self.settings._root = self.root
        self.runs = self.make_runs()

    def write(self, rows: Rows, configuration: dict[str, str] | None = None) -> None:
        """Write the table anew, with a feed."""
        shutil.rmtree(self.root / "lake", ignore_errors=True)
        write_deltalake(self.root / "lake", arrow(rows), configuration=FEED if configuration is None else configuration)

    def merge(self, rows: Rows) -> None:
        """Insert or update rows."""
        merging = DeltaTable(self.root / "lake").merge(
            arrow(rows), "s.entity_id = t.entity_id", source_alias="s", target_alias="t"
        )
        merging.when_matched_update_all().when_not_matched_insert_all().execute()

    def delete(self, *ids: str) -> None:
        DeltaTable(self.root / "lake").delete(f"entity_id in ({', '.join(map(repr, ids))})")

    def assert_equals_a_full_run(self, delta: RunView) -> None:
        full = self.publish(delta=False)
        ours, theirs = self.stored(delta.generation), self.stored(full.generation)
        assert ours.keys() == theirs.keys()
        assert {place: row[4:] for place, row in ours.items()} == {place: row[4:] for place, row in theirs.items()}
        # ages that depend on the run are those of its instant
        began, of_full = (int(self.runs._ledger.load(run.run_id).created_at) for run in (delta, full))
        now = {began, int(manifest_time(self, delta))}
        ages, expected = (
            {place: int.from_bytes(row[:4], "little") for place, row in of.items()} for of in (ours, theirs)
        )
        assert all(ages[place] in (now if age >= of_full else {age}) for place, age in expected.items())


@pytest.fixture
def world(redis_client: Client, tmp_path: Path) -> LakeWorld:
    world = LakeWorld(redis_client, tmp_path)
    world.table.versions.activate(1)
    return world


def edits(world: LakeWorld, rows: Rows, rng: random.Random) -> Rows:
    """Change the table as its owners do; return its rows."""
    kept = dict(rows)
    changed = {name: (rng.random(), kept[name][1]) for name in rng.sample(list(kept), 9)}
    changed |= {
        name: (kept[name][0], rng.choice([None, DAY + rng.randrange(9**6)])) for name in rng.sample(list(kept), 5)
    }
    changed |= {f"new{rng.random()}": (rng.random(), DAY) for _ in range(4)} | {"long" * 40: (rng.random(), DAY)}
    gone = rng.sample(list(kept), 6)
    world.merge(changed)
    world.delete(*gone)
    back = {gone[0]: (rng.random(), DAY)}
    world.merge(back)
    DeltaTable(world.root / "lake").optimize.compact()
    return {name: row for name, row in (kept | changed).items() if name not in gone} | back


@pytest.mark.parametrize("dated", [False, True])
def test_a_delta_run_over_a_feed_stores_what_a_full_run_would(world: LakeWorld, dated: bool) -> None:
    rng = random.Random(dated)
    world.dated = dated
    world.configure()
    rows: Rows = {f"e{i}": (rng.random(), rng.choice([DAY + i, None if i % 3 else 2 * 10**9])) for i in range(300)}
    world.write(rows)
    world.publish()
    for _ in range(2):
        before, rows = rows, edits(world, rows, rng)
        asked = world.model.rows
        delta = world.publish()
        new = [name for name in rows if name not in before or rows[name][0] != before[name][0]]
        assert (delta.full_reason, delta.rows_rescored) == (None, len(new))
        assert world.model.rows - asked == len(new)
        assert (delta.rows_carried, delta.rows_total, delta.rows_done) == (len(rows) - len(new), len(rows), len(rows))
        assert delta.rows_removed == len(set(before) - set(rows))
        assert delta.change_feed is not None
        assert "other rows were not read" in delta.change_feed
        assert (unread := world.runs._ledger.load(delta.run_id).rows_unread) is not None
        past = [name for name, (_, at) in rows.items() if not dated or (at is not None and at < 1.9e9)]
        assert 0 < unread <= len(set(past) - set(new))
        world.assert_equals_a_full_run(delta)


def test_a_feed_leaves_rows_unread_whatever_their_files_say(world: LakeWorld) -> None:
    world.configure()
    world.write(numbered(200))
    world.publish()
    world.delete("e7")
    world.merge({"e3": (-3.0, DAY), "e200": (1.5, DAY)})
    done = world.publish()
    assert done.change_feed == "3 entities were written since; 198 other rows were not read"
    assert (done.rows_carried, done.rows_rescored, done.rows_removed) == (198, 2, 1)
    assert world.answers("e3", "e4", "e7", "e200") == [-6.0, 8.0, None, 3.0]
    # carried rows count in the distribution, which the next run is compared with
    counted = world.runs._ledger.histogram(done.run_id)
    assert sum(counted["y"].values()) >= 200

    nothing = world.publish()
    assert (nothing.chunks_total, nothing.rows_carried, nothing.rows_removed) == (0, 200, 0)
    assert nothing.change_feed == "0 entities were written since; 200 other rows were not read"

    world.runs.rollback("m")
    world.merge({"e5": (-5.0, DAY)})
    again = world.publish()  # from the version that serves now
    assert (again.full_reason, again.rows_rescored) == (None, 1)
    assert world.answers("e3", "e5") == [-6.0, -10.0]


def test_rows_that_the_run_before_left_out_are_read_again(world: LakeWorld) -> None:
    world.configure(max_quarantined_fraction=0.5)
    world.write(numbered(50) | {"bad": (None, DAY)})
    assert world.publish().rows_quarantined == 1
    world.merge({"e3": (-3.0, DAY)})
    done = world.publish()
    assert (done.rows_quarantined, done.rows_rescored, done.change_feed) == (
        1, 1, "1 entity was written since; 49 other rows were not read",
    )  # fmt: skip


def vacuum(world: LakeWorld) -> None:
    world.merge({"e3": (-3.0, DAY)})
    world.merge({"e4": (-4.0, DAY)})
    table = DeltaTable(world.root / "lake")
    shutil.rmtree(world.root / "lake/_change_data")  # deltalake's own vacuum leaves it alone
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


def write_again(world: LakeWorld) -> None:
    world.write(numbered(200, e3=-3.0, e4=-4.0))


def turn_off(world: LakeWorld) -> None:
    table = DeltaTable(world.root / "lake")
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    world.merge({"e3": (-3.0, DAY), "e4": (-4.0, DAY)})


def turn_off_and_on(world: LakeWorld) -> None:
    turn_off(world)
    DeltaTable(world.root / "lake").alter.set_table_properties(FEED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (vacuum, "cannot be read"),
        (write_again, "is another table than the run before it read"),
        (turn_off, "the table has no change data feed (delta.enableChangeDataFeed)"),
        (turn_off_and_on, "cannot be read"),
    ],
)
def test_without_a_feed_all_rows_are_read_and_the_run_says_so(
    world: LakeWorld, change: Callable[[LakeWorld], None], reason: str
) -> None:
    world.configure()
    world.write(numbered(200))
    world.publish()
    change(world)
    done = world.publish()
    assert done.change_feed is not None
    assert done.change_feed.startswith("all rows were read: ")
    assert reason in done.change_feed
    assert "\n" not in done.change_feed
    assert (done.full_reason, done.rows_rescored, done.rows_carried) == (None, 2, 198)
    assert world.answers("e3", "e4") == [-6.0, -8.0]


def test_a_plan_over_a_feed_that_dies_anywhere_goes_on(world: LakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.configure()
    world.write(numbered(200))
    world.publish()
    world.merge({"e3": (-3.0, DAY)})
    run = world.request(delta=True)

    class Killed(BaseException):
        """What a killed process does not get to handle."""

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "keep_histogram", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.runs.reconcile("m")
    world.client.delete(KEYS.reconciler("m"))  # its lease runs out
    # the next attempt meets another table
    turn_off(world)
    done = world.finish(run)
    assert (done.state, done.error, done.rows_rescored) == (RunState.PUBLISHED, None, 2)
    assert world.answers("e3", "e4") == [-6.0, -8.0]


@pytest.fixture
def iceberg(world: LakeWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    catalog = new_catalog(world.root / "catalog")
    known = {"catalog": {"test": catalog_properties(world.root / "catalog")}}
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG.config", known)
    table = catalog.create_table("lake.users", schema=arrow(numbered(1)).schema)
    table.append(arrow(numbered(200)))
    world.features = "iceberg:test.lake.users"
    world.configure()
    yield table
    catalog.engine.dispose()


def test_appends_and_deletes_of_iceberg_leave_rows_unread(world: LakeWorld, iceberg: Any) -> None:
    world.publish()
    iceberg.append(arrow({"e200": (1.5, DAY)}))
    iceberg.append(arrow({"e201": (2.5, DAY)}))
    done = world.publish()
    assert done.change_feed == "2 entities were written since; 200 other rows were not read"
    assert (done.rows_rescored, world.answers("e4", "e201")) == (2, [8.0, 5.0])
    world.assert_equals_a_full_run(done)

    iceberg.delete("entity_id = 'e7'")  # rewrites a file
    done = world.publish()
    assert done.change_feed is not None
    assert "overwrites rows, and pyiceberg scans only appended ones" in done.change_feed
    assert (done.rows_rescored, done.rows_removed, world.answers("e7", "e8")) == (0, 1, [None, 16.0])
