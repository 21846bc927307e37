from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inference.batch import sinks
from inference.batch.quarantine import Quarantine
from inference.batch.scoring import ChunkResult, ChunkScorer, Preparer
from inference.batch.sinks import Window
from inference.errors import ModelError, ModelOutOfMemory, PredictionFailed, StaleAttempt
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, MicroBatch, VersionRecord
from inference.schema import Block, DType, Signature, TensorSpec
from tests.support.waiting import wait_for

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))


class Doubling:
    """A model that doubles its input, and raises for any micro-batch that holds one of `poison`."""

    signature, device = SIGNATURE, "cpu-1"

    def __init__(self, *, poison: Sequence[float] = (), default: float | None = None) -> None:
        self.vectoriser = Vectoriser(FeatureContract((Feature("x", DType.FLOAT32, (), default),)), SIGNATURE)
        self.record = VersionRecord(
            version=1,
            state="ready",
            signature=SIGNATURE,
            contract=self.vectoriser.contract,
            fingerprint="f",
            inspected_at=0.0,
        )
        self.poison = poison
        self.sizes: list[int] = []

    def predict(self, inputs: Block) -> Block:
        values = inputs["x"]
        self.sizes.append(len(values))
        if np.isin(values, self.poison).any():
            raise PredictionFailed("the model raised ValueError: bad row")
        return {"y": np.where(values == 0, np.float32("nan"), values * 2)}


class ListSink:
    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.events: list[str] = []

    def write(self, window: Window) -> None:
        self.windows.append(window)
        self.events.append("write")

    def commit(self) -> None:
        self.events.append("commit")

    def abandon(self) -> None:
        self.events.append("abandon")

    @property
    def rows(self) -> dict[str, float]:
        return {
            name: value
            for window in self.windows
            for name, value in zip(window.ids.to_pylist(), window.block["y"].tolist(), strict=True)
        }


def batch(values: Sequence[float | None], ids: Sequence[Any] | None = None, **columns: Any) -> pa.RecordBatch:
    names = ids if ids is not None else [f"e{i}" for i in range(len(values))]
    return pa.RecordBatch.from_pydict({"id": pa.array(names), "x": pa.array(values, pa.float32()), **columns})


def score(
    *batches: pa.RecordBatch,
    model: Doubling | None = None,
    fence: Callable[[], None] = lambda: None,
    event_time_column: str | None = None,
    alive: Callable[[str | None], None] = lambda _: None,
    micro_batch: MicroBatch | None = None,
    feature_sinks: Sequence[ListSink] = (),
    sink: ListSink | None = None,
    quarantine: Quarantine | None = None,
    chosen: Sequence[int] | None = None,
) -> tuple[ListSink, ChunkResult]:
    sink = sink or ListSink()
    scorer = scorer_of(
        model or Doubling(),
        sink,
        fence=fence,
        event_time_column=event_time_column,
        alive=alive,
        micro_batch=micro_batch,
        feature_sinks=feature_sinks,
        quarantine=quarantine,
    )
    return sink, scorer.score(batches, None if chosen is None else np.array(chosen, bool))


def scorer_of(
    model: Doubling,
    sink: ListSink,
    *,
    fence: Callable[[], None] = lambda: None,
    event_time_column: str | None = None,
    alive: Callable[[str | None], None] = lambda _: None,
    micro_batch: MicroBatch | None = None,
    feature_sinks: Sequence[ListSink] = (),
    quarantine: Quarantine | None = None,
) -> ChunkScorer:
    return ChunkScorer(
        model=LoadedModel("m", model.record, model.vectoriser, model),
        preparer=Preparer(model.vectoriser, "id", event_time_column, 1000.0),
        sinks=[sink],
        quarantine=quarantine or Quarantine(tempfile.mkdtemp(), chunk=0, token="t"),
        fence=fence,
        alive=alive,
        micro_batch=micro_batch or MicroBatch(4),
        feature_sinks=feature_sinks,
    )


def test_every_row_is_scored_in_micro_batches_and_written_in_one_window() -> None:
    model = Doubling()

    sink, result = score(batch([1, 2, 3, 4, 5, 6]), batch([7, 8], ids=["f0", "f1"]), model=model)

    assert sink.rows == {**{f"e{i}": 2.0 * (i + 1) for i in range(6)}, "f0": 14.0, "f1": 16.0}
    assert model.sizes == [4, 2, 2]
    assert sink.events == ["write", "commit", "abandon"]
    assert result.to_json() == {"rows": 8, "outside": 0, "quarantined": 0, "non_finite": 0, "bad_rows": []}


def test_integer_ids_become_decimal_text() -> None:
    sink, _ = score(batch([1, 2], ids=[12, -3]))

    assert sink.rows == {"12": 2.0, "-3": 4.0}


def test_rows_without_an_event_time_are_as_old_as_the_run() -> None:
    times = pa.array([5_000_000, None], pa.timestamp("us"))

    sink, _ = score(batch([1, 2], updated_at=times), event_time_column="updated_at")

    assert sink.windows[0].as_of.tolist() == [5.0, 1000.0]


def test_rows_that_cannot_be_scored_are_counted_once_with_reason_and_example() -> None:
    sink, result = score(batch([1, None, None, 4, 5], ids=["a", "b", None, "d\n", ""]))

    assert sink.rows == {"a": 2.0}
    assert (result.rows, result.quarantined) == (5, 4)
    assert "'id'" in result.bad_rows[0].reason
    assert [(bad.feature, bad.rows, bad.examples) for bad in result.bad_rows] == [
        (None, 3, ("null", "d\n", "")),
        ("x", 1, ("b",)),
    ]


@pytest.mark.parametrize(("length", "shown"), [(59, 59), (60, 60), (61, 60)])
def test_an_example_shows_sixty_characters_of_an_id(length: int, shown: int) -> None:
    _, result = score(batch([None], ids=["e" * length]))

    assert result.bad_rows[0].examples == ("e" * shown,)


def test_a_default_stands_in_for_a_missing_feature() -> None:
    sink, result = score(batch([1, None]), model=Doubling(default=3.0))

    assert sink.rows == {"e0": 2.0, "e1": 6.0}
    assert result.quarantined == 0


def test_only_the_row_that_makes_the_model_raise_is_left_out() -> None:
    sink, result = score(batch([1, 2, 3, 4, 5, 6, 7]), model=Doubling(poison=[3, 4]))

    assert sink.rows == {"e0": 2.0, "e1": 4.0, "e4": 10.0, "e5": 12.0, "e6": 14.0}
    assert [(bad.reason, bad.examples) for bad in result.bad_rows] == [
        ("the model raised ValueError: bad row", ("e2", "e3")),
    ]


def test_a_model_that_raises_for_every_row_gives_the_chunk_up_soon() -> None:
    model = Doubling(poison=[1])

    with pytest.raises(ModelError, match=r"raises for too many rows, such as: .*ValueError: bad row"):
        score(batch([1] * 5000), model=model, micro_batch=MicroBatch(1000))

    assert len(model.sizes) < 2000


def test_a_prediction_that_is_not_finite_is_never_written() -> None:
    sink, result = score(batch([1, 0, 2]))

    assert sink.rows == {"e0": 2.0, "e2": 4.0}
    assert (result.quarantined, result.non_finite) == (0, 1)


def test_the_fence_is_asked_before_every_window_and_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 4)
    sink = ListSink()

    score(batch([1] * 10), fence=lambda: sink.events.append("fence"), sink=sink)

    assert sink.events == ["fence", "write", "fence", "write", "fence", "write", "fence", "commit", "abandon"]


def test_nothing_is_written_or_committed_once_the_claim_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 4)
    sink = ListSink()

    def fence() -> None:
        if sink.windows:
            raise StaleAttempt("lost")

    with pytest.raises(StaleAttempt):
        score(batch([1] * 10), fence=fence, sink=sink)

    assert sink.events == ["write", "abandon"]


def test_wide_predictions_are_written_in_smaller_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_BYTES", 16)

    sink, _ = score(batch([1, 2, 3, 4, 5, 6, 7, 8]))

    assert [len(window.ids) for window in sink.windows] == [4, 4]


def test_a_window_is_written_early_when_nothing_else_is_to_be_written_and_whole_when_the_sink_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 16)
    model = Doubling()

    class Slow(ListSink):
        def write(self, window: Window) -> None:
            if not self.windows:  # until the model has filled two whole windows, of which one waits and one has no room
                wait_for(lambda: len(model.sizes) == 9, "the model")
            super().write(window)

    sink, result = score(batch(range(1, 41)), model=model, sink=Slow())

    assert [len(window.ids) for window in sink.windows] == [4, 16, 16, 4]
    assert result.rows == 40


def test_a_feature_sink_gets_what_the_rows_were_scored_from_and_only_of_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 2)
    features = ListSink()
    sink, result = score(batch([1, None, 3, 0, 5]), model=Doubling(poison=[3]), feature_sinks=[features])
    assert sink.rows == {"e0": 2.0, "e4": 10.0}
    kept = {
        name: value
        for window in features.windows
        for name, value in zip(window.ids.to_pylist(), window.block["x"].tolist(), strict=True)
    }
    assert kept == {"e0": 1.0, "e4": 5.0}
    assert features.events[-2:] == ["commit", "abandon"]
    assert result.rows == 5


class SmallMemory(Doubling):
    """A model for which more than three rows do not fit into memory."""

    def predict(self, inputs: Block) -> Block:
        if len(inputs["x"]) > 3:
            raise ModelOutOfMemory(f"{len(inputs['x'])} rows do not fit into memory")
        return super().predict(inputs)


def test_rows_that_are_not_chosen_never_meet_the_model_or_the_checks() -> None:
    model = Doubling()

    sink, result = score(batch([1, None, 3]), batch([4, 5], ["f0", "f1"]), model=model, chosen=[1, 0, 0, 0, 1])

    assert sink.rows == {"e0": 2.0, "f1": 10.0}
    assert sum(model.sizes) == 2
    assert (result.rows, result.outside, result.quarantined) == (5, 3, 0)


def test_rows_that_are_not_chosen_give_their_features_to_the_feature_sinks() -> None:
    model, features = Doubling(poison=[9]), ListSink()

    sink, result = score(
        batch([1, None, 3, 9]),
        batch([4, 5, 0], ["f0", "f1", "f2"]),
        model=model,
        feature_sinks=[features],
        chosen=[1, 1, 0, 1, 0, 1, 1],
    )

    stored = {
        name: x for w in features.windows for name, x in zip(w.ids.to_pylist(), w.block["x"].tolist(), strict=True)
    }
    assert sink.rows == {"e0": 2.0, "f1": 10.0}
    assert stored == {"e0": 1.0, "e2": 3.0, "f0": 4.0, "f1": 5.0}
    assert (result.rows, result.outside, result.quarantined, result.non_finite) == (7, 2, 2, 1)
    assert features.events[-2:] == ["commit", "abandon"]


def test_a_chunk_of_which_no_row_is_chosen_is_done() -> None:
    features = ListSink()

    sink, result = score(batch([1, 2]), feature_sinks=[features], chosen=[0, 0])

    assert (sink.windows, result.outside, result.rows) == ([], 2, 2)
    assert len(features.windows) == 1


def test_out_of_memory_halves_the_micro_batch_for_good_and_costs_no_row() -> None:
    remembered: list[int] = []
    micro_batch, model = MicroBatch(8, remembered.append), SmallMemory()
    sink, result = score(batch(range(1, 17)), batch([17, 18], ["a", "b"]), model=model, micro_batch=micro_batch)
    assert len(sink.rows) == 18
    assert (result.quarantined, result.non_finite) == (0, 0)
    assert max(model.sizes) <= 3
    assert (micro_batch.rows, remembered) == (2, [2])


def test_a_model_that_has_no_memory_for_a_single_row_gives_the_chunk_up_and_blames_no_row() -> None:
    class NoMemory(Doubling):
        def predict(self, inputs: Block) -> Block:
            raise ModelOutOfMemory("1 row does not fit into memory")

    sink = ListSink()
    with pytest.raises(ModelOutOfMemory):
        score(batch([1, 2]), model=NoMemory(), sink=sink)
    assert sink.events == ["abandon"]


def test_batches_are_read_while_the_model_computes() -> None:
    asked: list[int] = []

    def reading() -> Iterator[pa.RecordBatch]:
        for number in range(6):
            asked.append(number)
            yield batch([1.0], [f"e{number}"])

    class Waiting(Doubling):
        def predict(self, inputs: Block) -> Block:
            if not self.sizes:  # the first call ends only when more has been read
                wait_for(lambda: len(asked) >= 3, "read ahead")
            return super().predict(inputs)

    model, sink = Waiting(), ListSink()
    result = scorer_of(model, sink).score(reading())
    assert result.rows == 6
    assert sorted(sink.rows) == [f"e{number}" for number in range(6)]


def test_an_error_of_the_reader_ends_the_chunk_after_what_was_read() -> None:
    def reading() -> Iterator[pa.RecordBatch]:
        yield batch([1.0])
        raise OSError("disk gone")

    sink, threads_before = ListSink(), threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        scorer_of(Doubling(), sink).score(reading())
    assert sink.events == ["abandon"]
    assert threading.active_count() == threads_before


def test_an_error_of_a_sink_ends_the_chunk_and_nothing_more_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WINDOW_ROWS", 2)

    class Full(ListSink):
        def write(self, window: Window) -> None:
            super().write(window)
            raise OSError("No space left on device")

    sink = Full()
    with pytest.raises(OSError, match="No space"):
        score(batch(range(1, 40)), sink=sink)
    assert sink.events == ["write", "abandon"]


def test_a_row_is_as_old_as_its_oldest_group_that_is_young_enough() -> None:
    features = [
        {"name": "x", "dtype": "float32", "group": "p"},
        {"name": "z", "dtype": "float32", "group": "q", "default": 7},
    ]
    groups = {"p": {"event_time_column": "p_at"}, "q": {"event_time_column": "q_at", "max_age": "60s"}}
    contract = FeatureContract.from_json({"features": features, "groups": groups})
    preparer = Preparer(
        Vectoriser(contract, Signature(contract.fields, (TensorSpec("y", DType.FLOAT32),))), "id", None, 1000.0
    )
    seconds = pa.timestamp("s")
    rows = pa.RecordBatch.from_pydict({
        "id": ["a", "b", "c", "d", "e"], "x": pa.array([1] * 5, pa.float32()), "z": pa.array([2] * 5, pa.float32()),
        "p_at": pa.array([980, 980, 980, None, None], seconds), "q_at": pa.array([940, 939, 990, 950, None], seconds),
    })  # fmt: skip
    prepared = preparer.prepare(rows)
    # a's q is of the last second allowed; b's is too old, and its default has no age
    assert prepared.usable.as_of.tolist() == [940, 980, 980]
    assert prepared.features["z"].tolist() == [2, 7, 2]
    assert prepared.rows.as_of.tolist() == [940, 980, 980, 950, 1000], "what has no time is of the run"
    assert [(refused.feature, refused.positions.tolist()) for refused in prepared.refused] == [("x", [3, 4])]
