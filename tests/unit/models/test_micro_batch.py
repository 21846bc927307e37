"""How large a model call is: the search with a clock of its own, and what is remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from inference.errors import ModelOutOfMemory, PredictionFailed
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, MicroBatch, MicroBatches, ModelRegistry, VersionRecord
from inference.models.micro_batch import AGAIN_AFTER_S, CALM, FALLBACK_ROWS, LARGEST, SMALLEST, fastest_rows
from inference.models.registry import MicroBatchRecord
from inference.processors import OthersTime
from inference.schema import Block, DType, Signature, TensorSpec
from inference.stored_data import record_from_json

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))


class Machine:
    """A clock that only model calls move on: each costs a fixed part and a part a row, more beyond the cache."""

    def __init__(self, *, call_s: float = 0.001, row_s: float = 1e-6, cache_rows: int = 1 << 30, memory: int = 1 << 30):
        self.now_s = 0.0
        self.call_s, self.row_s, self.cache_rows, self.memory = call_s, row_s, cache_rows, memory
        self.tried: list[int] = []

    def clock(self) -> float:
        return self.now_s

    def spend(self, rows: int) -> None:
        self.tried.append(rows)
        if rows > self.memory:
            raise ModelOutOfMemory(f"{rows} rows do not fit into memory")
        slow = 2.0 if rows > self.cache_rows else 1.0
        self.now_s += self.call_s + rows * self.row_s * slow

    def call_of(self, rows: int) -> Callable[[], object]:
        return lambda: self.spend(rows)


@pytest.mark.parametrize(
    ("machine", "best"),
    [
        (Machine(call_s=0.0), SMALLEST),  # nothing is gained by more rows a call
        (Machine(call_s=0.001), 16_384),  # within 5 % of the largest
        (Machine(call_s=1.0), LARGEST),
        (Machine(call_s=0.001, cache_rows=4096), 4096),  # beyond it, memory is slow
        (Machine(call_s=0.001, memory=5000), 4096),
        (Machine(call_s=0.001, memory=10), 8),
    ],
    ids=["free calls", "costly calls", "very costly calls", "small cache", "small memory", "tiny memory"],
)
def test_the_search_finds_the_smallest_size_that_is_about_as_fast_as_any(machine: Machine, best: int) -> None:
    rows, rate = fastest_rows(machine.call_of, most=LARGEST, clock=machine.clock, budget_s=1e9)
    assert rows == best
    assert rate == pytest.approx(best / (machine.call_s + best * machine.row_s))


def test_the_search_ends_when_its_time_is_up_with_the_best_so_far() -> None:
    slow = Machine(call_s=1.0)
    rows, _ = fastest_rows(slow.call_of, most=LARGEST, clock=slow.clock, budget_s=5.0)
    assert rows == max(slow.tried)
    assert rows < LARGEST


def test_a_model_that_cannot_take_one_row_is_an_error() -> None:
    machine = Machine(memory=0)
    with pytest.raises(ModelOutOfMemory):
        fastest_rows(machine.call_of, most=LARGEST, clock=machine.clock)


def test_no_size_is_ever_above_what_the_inputs_may_take() -> None:
    machine = Machine(call_s=1.0)
    assert fastest_rows(machine.call_of, most=100, clock=machine.clock, budget_s=1e9)[0] == 100


class Remembering:
    """A registry of micro-batches in memory."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int, str], MicroBatchRecord] = {}

    def micro_batch(self, model: str, version: int, device: str) -> MicroBatchRecord | None:
        return self.found.get((model, version, device))

    def put_micro_batch(self, model: str, version: int, device: str, record: MicroBatchRecord) -> None:
        self.found[model, version, device] = record


class Model:
    """A version whose calls take time on a machine."""

    model = "m"

    def __init__(self, machine: Machine, *, fingerprint: str = "f", device: str = "cpu-2", fails: bool = False) -> None:
        self.machine, self.fails = machine, fails
        self.runtime = SimpleNamespace(device=device)
        self.vectoriser = Vectoriser(FeatureContract((Feature("x", DType.FLOAT32, ()),)), SIGNATURE)
        self.record = VersionRecord(
            version=3, state="ready", signature=SIGNATURE, contract=self.vectoriser.contract,
            fingerprint=fingerprint, inspected_at=0.0,
        )  # fmt: skip

    def predict(self, inputs: Block) -> Block:
        if self.fails:
            raise PredictionFailed("no such word")
        self.machine.spend(len(inputs["x"]))
        return {"y": np.zeros(len(inputs["x"]), np.float32)}


class Process:
    """One process's micro-batches of a model, on a machine where others take a share of the time."""

    def __init__(self, registry: Remembering, model: Model, others: float = 0.0, now: float = 1000.0) -> None:
        self.model, self.others, self.now = model, others, now
        self.batches = MicroBatches(
            cast(ModelRegistry, registry),
            clock=model.machine.clock,
            now=lambda: self.now,
            others_time=lambda: cast(OthersTime, SimpleNamespace(share=lambda: self.others)),
        )

    @property
    def rows(self) -> int:
        return self.batches.of("m", cast(LoadedModel, self.model), "auto").rows


def search(registry: Remembering, model: Model, asked: Any = "auto") -> MicroBatch:
    batches = Process(registry, model).batches
    found = batches.of("m", cast(LoadedModel, model), asked)
    assert batches.of("m", cast(LoadedModel, model), asked) is found
    return found


@pytest.fixture
def registry() -> Iterator[Remembering]:
    return Remembering()


def test_what_was_found_is_remembered_for_other_processes(registry: Remembering) -> None:
    first, second = Model(Machine(call_s=0.001)), Model(Machine(call_s=0.001))
    assert search(registry, first).rows == search(registry, second).rows == 16_384
    assert first.machine.tried
    assert not second.machine.tried


def test_processes_of_a_host_search_one_after_the_other(registry: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Model(Machine(call_s=0.001)), Model(Machine(call_s=0.001))
    found_nothing, later = threading.Event(), list[Future[MicroBatch]]()
    look, spend = registry.micro_batch, first.machine.spend

    def look_up(model: str, version: int, device: str) -> MicroBatchRecord | None:
        record = look(model, version, device)
        if threading.current_thread() is not threading.main_thread():
            found_nothing.set()
        return record

    def spend_while_another_searches(rows: int) -> None:
        if not later:
            later.append(threads.submit(search, registry, second))
            assert found_nothing.wait(60)
        spend(rows)

    monkeypatch.setattr(registry, "micro_batch", look_up)
    monkeypatch.setattr(first.machine, "spend", spend_while_another_searches)
    with ThreadPoolExecutor(1) as threads:
        assert search(registry, first).rows == later[0].result().rows == 16_384
    assert first.machine.tried
    assert not second.machine.tried


def test_a_replaced_version_and_another_device_are_searched_anew(registry: Remembering) -> None:
    search(registry, Model(Machine(call_s=0.001)))
    replaced = Model(Machine(call_s=0.0), fingerprint="other")
    assert search(registry, replaced).rows == SMALLEST
    elsewhere = Model(Machine(call_s=1.0), device="NVIDIA H100")
    assert search(registry, elsewhere).rows > SMALLEST
    assert len(registry.found) == 2


def test_running_out_of_memory_is_remembered_for_other_processes(registry: Remembering) -> None:
    search(registry, Model(Machine(call_s=0.001))).shrink(10_000)
    assert search(registry, Model(Machine(call_s=0.001))).rows == 5_000


def test_what_was_found_on_a_busy_machine_is_found_again_later_and_the_calmer_search_counts(
    registry: Remembering,
) -> None:
    machine = Machine(call_s=0.0)
    process = Process(registry, Model(machine), others=0.5)
    assert process.rows == SMALLEST
    machine.call_s = 0.001
    process.now += AGAIN_AFTER_S - 1
    assert process.rows == SMALLEST  # too early
    assert Process(registry, Model(machine), now=process.now).rows == SMALLEST
    process.now, process.others = process.now + 1, 0.6
    assert process.rows == SMALLEST  # searched, but the machine was busier
    assert registry.found["m", 3, "cpu-2"].others == 0.5
    process.now, process.others = process.now + AGAIN_AFTER_S, CALM
    assert process.rows == 16_384
    machine.call_s = 0.0
    process.now += 100 * AGAIN_AFTER_S
    assert process.rows == Process(registry, Model(machine), now=process.now).rows == 16_384


def test_rows_that_did_not_fit_into_memory_on_a_busy_machine_are_not_tried_again(registry: Remembering) -> None:
    process = Process(registry, Model(Machine(call_s=0.001)), others=1.0)
    process.batches.of("m", cast(LoadedModel, process.model), "auto").shrink(1000)
    process.now += AGAIN_AFTER_S
    assert process.rows == Process(registry, process.model, now=process.now).rows == 500


def test_a_record_of_an_older_release_counts_for_good() -> None:
    record = record_from_json(MicroBatchRecord, b'{"rows":512,"fingerprint":"f"}', "a record")
    assert record.others <= CALM


def test_a_number_that_was_asked_for_stands_and_is_nobody_elses(registry: Remembering) -> None:
    model = Model(Machine())
    found = search(registry, model, 77)
    found.shrink(70)
    assert (found.rows, registry.found, model.machine.tried) == (35, {}, [])


def test_a_model_that_refuses_made_up_rows_gets_a_middling_size(registry: Remembering) -> None:
    assert search(registry, Model(Machine(), fails=True)).rows == FALLBACK_ROWS
    assert registry.found == {}


def test_sizes_only_shrink() -> None:
    size = MicroBatch(100)
    size.shrink(1000)
    assert size.rows == 100
    size.shrink(1)
    assert size.rows == 1


@pytest.mark.parametrize(("failed_rows", "rows"), [(100, 50), (3, 1), (1, 1), (0, 1), (201, 100), (202, 100)])
def test_half_of_what_did_not_fit_is_next_and_it_is_remembered_only_when_it_is_less(
    failed_rows: int, rows: int
) -> None:
    remembered: list[int] = []
    batch = MicroBatch(100, remembered.append)
    batch.shrink(failed_rows)
    assert (batch.rows, remembered) == (rows, [rows] if rows < 100 else [])
