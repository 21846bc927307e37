"""What a comparison of two generations says, over a real Redis, held to what numpy says of the same values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import DiffOptions, RunDiff, RunState
from inference.batch.ledger import Ledger
from inference.errors import BadInput, Conflict, NotFound, SourceError
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.schema import Block, DType, TensorSpec
from inference.store import Manifest
from inference.store.scanning import scan_buckets
from tests.integration.test_runs import KEYS, World
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

#: of a run over thousands of rows
BIG = {"rows_per_chunk": 1_000, "micro_batch_rows": 1_000}
NUMBER = (TensorSpec("y", DType.FLOAT32),)


class Desk:
    """A model whose generations are written by hand, each as the generation of a run."""

    def __init__(self, client: Client, root: Path) -> None:
        self.world = World(client, root)
        self.world.configure(parquet_path=None)
        self.world.source(["a", "b"])
        self.client, self.root, self.table = client, root, self.world.table
        self.ledger = Ledger(client, KEYS)

    def run(
        self, ids: Sequence[str], block: Block, fields: tuple[TensorSpec, ...] = NUMBER, *, rows: int | None = None,
        publish: bool = False, chunks_done: int = 1,
    ) -> str:  # fmt: skip
        """Leave a run behind whose generation holds the block. `rows`: the number that it expected."""
        view = self.world.request()
        manifest = self.table.generations.begin(
            fields, rows_expected=len(ids) if rows is None else rows, model_version=1, contract_hash="h", keep_s=3600,
            run_id=view.run_id,
        )  # fmt: skip
        for start in range(0, len(ids), 7_000):
            part = {name: values[start : start + 7_000] for name, values in block.items()}
            some = pa.array(ids[start : start + 7_000], pa.string())
            self.table.generations.write(manifest, some, part, np.ones(len(some)))
        run = self.ledger.load(view.run_id)
        facts = {"generation": manifest.number, "chunks_total": 1, "chunks_done": chunks_done, "rows_total": len(ids)}
        end = RunState.PUBLISHED if publish else RunState.HELD
        self.ledger.move(run, end, expected=[RunState.QUEUED], **facts)
        if publish:
            self.table.generations.publish(manifest.number)
        return view.run_id

    def diff(self, run_id: str, **options: Any) -> RunDiff:
        return self.world.runs.diff(run_id, DiffOptions(**options))


@pytest.fixture
def desk(redis_client: Client, tmp_path: Path) -> Desk:
    return Desk(redis_client, tmp_path)


def ids_of(rows: int) -> list[str]:
    return [f"user_{number}" for number in range(rows)]


def test_a_comparison_gives_way_to_requests(
    redis_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[None] = []

    class Yields:
        def __init__(self, *_: object) -> None: ...

        def give_way(self) -> None:
            pauses.append(None)

    monkeypatch.setattr("inference.batch.runs.Yielding", Yields)
    desk = Desk(redis_client, tmp_path)
    for publish in (True, False):
        run_id = desk.run(ids_of(10), {"y": np.ones(10, np.float32)}, publish=publish)
    desk.diff(run_id)
    assert len(pauses) == 3  # the rows of each side, and all entities together


@pytest.mark.parametrize("buckets", ["equal", "different"])
def test_all_numbers_are_those_of_numpy_whatever_the_buckets(desk: Desk, buckets: str) -> None:
    rng = np.random.default_rng(1)
    rows = 150_000  # several parts
    before = rng.random(rows).astype(np.float32)
    after = np.where(rng.random(rows) < 0.1, rng.random(rows), before).astype(np.float32)
    desk.run(ids_of(rows), {"y": before}, publish=True)
    order = rng.permutation(rows)[:-500]  # 500 are gone, 300 new
    ids = [f"user_{number}" for number in order] + [f"new_{number}" for number in range(300)]
    values = np.concatenate([after[order], np.full(300, 2, np.float32)])
    run = desk.run(ids, {"y": values}, rows=rows if buckets == "equal" else 2 * rows // 3)

    diff = desk.diff(run, threshold=0.5, tolerance=0.25)

    [y] = diff.outputs
    old, new = before[order], after[order]
    assert (diff.rows_both, diff.rows_new, diff.rows_gone) == (rows - 500, 300, 500)
    assert y.moved == (np.abs(new.astype(float) - old) > 0.25).mean()
    assert y.flips is not None
    assert (y.flips.up, y.flips.down) == (((old < 0.5) & (new >= 0.5)).sum(), ((old >= 0.5) & (new < 0.5)).sum())
    assert y.flips.share == pytest.approx(((old < 0.5) != (new < 0.5)).mean())
    assert y.before is not None
    assert y.after is not None
    assert (y.before.count, y.after.count) == (rows, len(ids))
    assert (y.after.mean, y.after.std) == pytest.approx((values.mean(dtype=float), values.std(dtype=float)))
    assert (y.before.min, y.before.max) == (before.min(), before.max())
    assert y.before.quantiles["p50"] == pytest.approx(np.median(before))
    assert y.histogram is not None
    assert sum(y.histogram.after) == pytest.approx(1)
    furthest = np.argsort(-np.abs(new - old), kind="stable")[:10]
    assert {one.id for one in y.movers} == {f"user_{order[at]}" for at in furthest}
    assert y.movers[0].movement == pytest.approx(np.abs(new - old).max())
    assert [one.movement for one in y.movers] == sorted((one.movement for one in y.movers), reverse=True)


def test_a_published_run_is_compared_with_what_served_before_it(desk: Desk) -> None:
    first = desk.run(["a", "b"], {"y": np.array([1, 2], np.float32)}, publish=True)
    second = desk.run(["a", "b"], {"y": np.array([1, 5], np.float32)}, publish=True)
    diff = desk.diff(second)
    assert (diff.against_run, diff.outputs[0].moved, diff.outputs[0].movers[0].id) == (first, 0.5, "b")
    desk.run(["a", "b"], {"y": np.array([1, 6], np.float32)}, publish=True)
    kept = desk.diff(second)  # the rows that it was compared with are gone
    assert kept.is_kept
    assert kept.to_json()["outputs"] == diff.to_json()["outputs"]


def test_vectors_are_compared_by_their_largest_element_and_flags_by_themselves(desk: Desk) -> None:
    fields = (TensorSpec("p", DType.FLOAT32, (3,)), TensorSpec("f", DType.BOOL), TensorSpec("n", DType.INT64))
    one = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], np.float32)
    two = np.array([[0.5, 0.4, 0.1], [0.4, 0.3, 0.3]], np.float32)
    desk.run(["a", "b"], {"p": one, "f": np.array([True, True]), "n": np.array([7, 7])}, fields, publish=True)
    run = desk.run(["a", "b"], {"p": two, "f": np.array([True, False]), "n": np.array([7, -7])}, fields)
    by_name = {output.name: output for output in desk.diff(run).outputs}
    p, f, n = by_name["p"], by_name["f"], by_name["n"]
    assert p.flips is not None
    assert (p.kind, p.flips.rows, p.flips.up, p.movers[0].id) == ("vector", 1, None, "b")
    assert p.movers[0].before == pytest.approx([0.2, 0.5, 0.3])
    assert f.flips is not None
    assert (f.flips.rows, f.flips.up, f.flips.down) == (1, 0, 1)
    assert n.flips is None
    assert n.left_out == ["decisions that flip: give a threshold"]
    assert n.movers[0].movement == 14


def test_integers_have_no_noise_however_large_they_are(desk: Desk) -> None:
    fields = (TensorSpec("n", DType.INT64), TensorSpec("x", DType.FLOAT64))
    values = np.array([1_234_567, 2**60, 5])
    ids = ["a", "b", "c"]
    desk.run(ids, {"n": values, "x": values.astype(float)}, fields, publish=True)
    later = values + np.array([1, 1, 0])
    run = desk.run(ids, {"n": later, "x": later.astype(float)}, fields)
    n, x = desk.diff(run).outputs
    assert (n.moved, x.moved) == (2 / 3, 0.0)
    assert desk.diff(run, tolerance=2.0).outputs[0].moved == 0.0


def test_texts_are_compared_for_equality_and_what_makes_no_sense_is_left_out_in_words(desk: Desk) -> None:
    fields = (TensorSpec("label", DType.STRING), TensorSpec("list", DType.FLOAT32, (-1,)))
    lists = np.empty(3, object)
    lists[:] = [np.array([1.0]), np.array([1.0, 2.0]), np.array([3.0])]
    other = np.empty(3, object)
    other[:] = [np.array([1.0]), np.array([1.0]), np.array([3.0])]
    before, after = (np.array(words, object) for words in (["hot", "cold", "cold"], ["hot", "hot", "hot"]))
    desk.run(["a", "b", "c"], {"label": before, "list": lists}, fields, publish=True)
    run = desk.run(["a", "b", "c"], {"label": after, "list": other}, fields)
    label, varying = desk.diff(run, threshold=0.5).outputs
    assert label.flips is not None
    assert label.moved == label.flips.share == pytest.approx(2 / 3)
    assert [(one.before, one.after, one.rows) for one in label.changes] == [("cold", "hot", 2)]
    assert label.before is None
    assert "can only be equal or not" in label.left_out[0]
    assert (varying.moved, varying.flips) == (pytest.approx(1 / 3), None)


def test_long_ids_are_compared_and_named_as_far_as_the_store_knows_them(desk: Desk) -> None:
    ids = ["é" * 40, "x" * 500, "short"]
    desk.run(ids, {"y": np.zeros(3, np.float32)}, publish=True)
    diff = desk.diff(desk.run(ids, {"y": np.array([3, 2, 1], np.float32)}))
    assert diff.rows_both == 3
    assert [one.id for one in diff.outputs[0].movers] == [None, None, "short"]


def test_values_that_look_like_the_protocol_are_read_as_values(desk: Desk) -> None:
    fields = (TensorSpec("b", DType.UINT8, (16,)),)
    hostile = np.frombuffer(b"\r\n$24\r\n*2\r\n%9\r\n\r", np.uint8)
    block = np.stack([hostile, np.zeros(16, np.uint8)])
    desk.run(["a", "b"], {"b": block}, fields, publish=True)
    diff = desk.diff(desk.run(["a", "b"], {"b": block}, fields))
    assert (diff.rows_both, diff.outputs[0].moved) == (2, 0.0)


def test_buckets_are_read_by_either_version_of_the_protocol(desk: Desk, redis_server: RedisServer) -> None:
    run = desk.run(ids_of(300), {"y": np.arange(300, dtype=np.float32)})
    manifest: Manifest | None = desk.table.generations.manifest(desk.ledger.load(run).generation or 0)
    assert manifest is not None
    keys = Keys("t").table(desk.table._kind, "m")
    for protocol in (2, 3):
        with Client.from_url(redis_server.url(), protocol=protocol) as client:
            read = scan_buckets(client, keys.bucket_form(manifest.number), range(manifest.buckets), 8)
            assert sum(map(len, read)) == 300


# --- segments


def segmented(desk: Desk, **table: Any) -> str:
    """A run whose table has a column `city`; every value moves by one in Rome, and not in Oslo."""
    ids = ids_of(90)
    city = ["Rome", "Oslo", None] * 30
    pq.write_table(pa.table({"entity_id": ids, "x": [0.0] * 90, "city": city, **table}), desk.root / "t.parquet")
    before = np.arange(90, dtype=np.float32)
    after = before + np.array([town == "Rome" for town in city], np.float32)
    desk.run([*ids, "unknown"], {"y": np.append(before, np.float32(0))}, publish=True)
    return desk.run([*ids, "unknown"], {"y": np.append(after, np.float32(9))})


def test_segments_are_told_by_a_column_of_the_source(desk: Desk) -> None:
    diff = desk.diff(segmented(desk), segment="city", threshold=45.0)
    segments = {one.value: one for one in diff.outputs[0].segments}
    assert {name: (one.rows, one.moved) for name, one in segments.items()} == {
        "Rome": (30, 1.0), "Oslo": (30, 0.0), "(null)": (30, 0.0), "(not in the table)": (1, 1.0),
    }  # fmt: skip
    assert segments["Rome"].mean_after == pytest.approx((segments["Rome"].mean_before or 0) + 1)
    assert segments["Oslo"].flipped == 0


def test_of_a_history_table_the_newest_row_tells_the_segment(desk: Desk) -> None:
    world = desk.world
    own = {"rows": "newest", "event_time_column": "at"}
    world.settings.models["m"] = world.settings.models["m"].model_copy(update=own)
    world.runs = world.make_runs()
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 3, 2)] + [None, datetime(2026, 1, 1, tzinfo=UTC)]
    table = {"entity_id": ["a", "a", "a", "b", "b"], "x": [0.0] * 5, "at": times, "city": ["1", "3", "2", "none", "1"]}
    pq.write_table(pa.table(table), desk.root / "t.parquet")
    desk.run(["a", "b"], {"y": np.zeros(2, np.float32)}, publish=True)
    diff = desk.diff(desk.run(["a", "b"], {"y": np.zeros(2, np.float32)}), segment="city")
    assert {one.value: one.rows for one in diff.outputs[0].segments} == {"3": 1, "1": 1}


def test_numbers_and_flags_are_segments_too_and_lists_are_not(desk: Desk) -> None:
    run = segmented(desk, level=[1, 2, 3] * 30, odd=[True, False, True] * 30, many=[[1]] * 90)
    assert {one.value for one in desk.diff(run, segment="level").outputs[0].segments} >= {"1", "2", "3"}
    assert {one.value for one in desk.diff(run, segment="odd").outputs[0].segments} >= {"true", "false"}
    with pytest.raises(BadInput, match="a segment is text"):
        desk.diff(run, segment="many")


def test_a_column_that_the_source_lacks_is_refused_by_name(desk: Desk) -> None:
    run = segmented(desk)
    with pytest.raises(SourceError, match=r"no column 'cty'.*did you mean 'city'"):
        desk.diff(run, segment="cty")


def test_a_column_of_ids_is_no_segment(desk: Desk) -> None:
    ids = ids_of(1_200)
    pq.write_table(pa.table({"entity_id": ids, "x": [0.0] * 1_200}), desk.root / "t.parquet")
    desk.run(ids, {"y": np.zeros(1_200, np.float32)}, publish=True)
    with pytest.raises(BadInput, match="over 1,000 different values"):
        desk.diff(desk.run(ids, {"y": np.zeros(1_200, np.float32)}), segment="entity_id")


# --- features


def test_stored_features_of_both_generations_are_compared_entity_by_entity(desk: Desk) -> None:
    world = desk.world
    world.configure(parquet_path=None, feature_table=True, max_drift=1000.0, **BIG)
    ids = ids_of(2_000)
    world.source(ids, [float(n % 10) for n in range(2_000)])
    world.table.versions.activate(1)
    first = world.finish(world.request())
    assert first.state is RunState.PUBLISHED, first.error
    world.source(ids, [float((n + 1) % 10) for n in range(2_000)])  # another number of each, the same distribution
    held = world.finish(world.request(hold=True))
    found = world.runs.diff(held.run_id).features
    assert found is not None
    [x] = found.features
    assert (x.name, x.changed) == ("x", 1.0)
    assert x.drift == pytest.approx(0, abs=0.01)
    assert x.moved is not None
    assert x.moved > 0.5
    assert "stored features" in found.how


def test_without_stored_features_the_columns_of_both_tables_are_compared(desk: Desk) -> None:
    world = desk.world
    world.configure(parquet_path=None, max_drift=1000.0, **BIG)
    folder = desk.root / "tables"
    folder.mkdir()
    for name, shift in (("one", 0.0), ("two", 5.0)):
        table = {"entity_id": ids_of(2_000), "x": pa.array(np.arange(2_000) % 10 + shift, pa.float32())}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    world.settings.models["m"] = world.settings.models["m"].model_copy(update={"features": str(folder / "one.parquet")})
    world.runs = world.make_runs()
    assert world.finish(world.request()).state is RunState.PUBLISHED
    held = world.finish(world.request(source=str(folder / "two.parquet"), hold=True))
    assert held.state is RunState.HELD, held.error
    found = world.runs.diff(held.run_id).features
    assert found is not None
    assert "by the columns" in found.how
    assert [(one.name, one.changed, one.mean_before, one.mean_after) for one in found.features] == [
        ("x", None, 4.5, 9.5)
    ]
    assert (found.features[0].drift or 0) > 1


def test_a_table_that_was_replaced_is_told_in_words(desk: Desk) -> None:
    world = desk.world
    world.source(ids_of(30))
    assert world.finish(world.request()).state is RunState.PUBLISHED
    same = world.finish(world.request(hold=True))
    told = world.runs.diff(same.run_id).features
    assert told is not None
    assert "had not changed" in told.how
    world.runs.cancel(same.run_id)
    world.source(ids_of(31))
    replaced = world.finish(world.request(hold=True))
    told = world.runs.diff(replaced.run_id).features
    assert told is not None
    assert "was replaced between the runs" in told.how
    assert world.runs.diff(replaced.run_id, DiffOptions(features=False)).features is None


# --- what cannot be compared


def test_what_cannot_be_compared_is_one_line(desk: Desk) -> None:
    runs = desk.world.runs
    with pytest.raises(NotFound, match="no run 'nosuch'"):
        runs.diff("nosuch")
    alone = desk.run(["a"], {"y": np.ones(1, np.float32)})
    with pytest.raises(Conflict, match="nothing serves"):
        runs.diff(alone)
    runs.cancel(alone)
    desk.run(["a"], {"y": np.ones(1, np.float32)}, publish=True)
    part = desk.run(["a"], {"y": np.ones(1, np.float32)}, chunks_done=0)
    with pytest.raises(Conflict, match="only a part of its rows"):
        runs.diff(part)
    runs.cancel(part)
    other = desk.run(["a"], {"z": np.ones(1, np.float32)}, (TensorSpec("z", DType.FLOAT32),))
    with pytest.raises(BadInput, match="other outputs than what serves: 'z' float32, and there 'y' float32"):
        runs.diff(other)
    runs.cancel(other)
    going_on = desk.world.request()
    with pytest.raises(Conflict, match="is queued"):
        runs.diff(going_on.run_id)
    runs.cancel(going_on.run_id)
    with pytest.raises(Conflict, match="no predictions in Redis"):
        runs.diff(going_on.run_id)
