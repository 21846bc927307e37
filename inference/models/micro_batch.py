"""Finds the best number of rows of one model call, once for each version and kind of device, and remembers it.

Larger calls are faster until memory or caches run short. A laptop's CPU and a GPU differ in that by a factor of a
hundred. The processes of a host search one after the other: two at once would measure each other. If other
processes kept the machine busy during a search all the same, another one follows some time later, and the result of the
calmer one counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from inference import host_locks
from inference.clock import Clock, system_clock
from inference.errors import ModelOutOfMemory, PredictionFailed
from inference.logs import get_logger
from inference.models.loaded import LoadedModel
from inference.models.registry import MicroBatchRecord, ModelRegistry
from inference.models.warm_up import warm_up_inputs
from inference.processors import OthersTime

log = get_logger(__name__)

#: sizes tried; a call of the largest takes milliseconds on a CPU and fills a GPU
SMALLEST, LARGEST = 256, 65_536
#: the limit for the inputs of a call
MOST_BYTES = 256 << 20
#: the time of a whole search; then the time of the calls of one size, two at least
BUDGET_S = 5.0
_PER_SIZE_S = 0.05
#: a smaller size with this share of the best rate is as good, and takes less memory
CLOSE_ENOUGH = 0.95
#: used if the model takes no made-up rows
FALLBACK_ROWS = 8192
#: a search counts for good if other processes took no more than this share of the processors' time meanwhile; else the
#: next one follows after so many seconds
CALM, AGAIN_AFTER_S = 0.1, 600.0


class MicroBatch:
    """The rows a call of one model in this process. Several threads may share it: the number only shrinks.

    `counts_until`: epoch seconds of the next search.
    """

    def __init__(
        self, rows: int, remember: Callable[[int], object] | None = None, *, counts_until: float = math.inf
    ) -> None:
        self.rows = rows
        self.counts_until = counts_until
        self._remember = remember

    def shrink(self, failed_rows: int) -> None:
        """Use half of the number of rows that did not fit into memory, and remember that."""
        rows = max(1, failed_rows // 2)
        if rows < self.rows:
            self.rows = rows
            self.counts_until = math.inf
            if self._remember:
                self._remember(rows)


class MicroBatches:
    """Returns the micro-batch of each loaded version: from memory, else from Redis, else by a search."""

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        clock: Callable[[], float] = time.perf_counter,
        now: Clock = system_clock,
        others_time: Callable[[], OthersTime] = OthersTime,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._now = now
        self._others_time = others_time
        self._known: dict[tuple[str, int], MicroBatch] = {}

    def of(self, model: str, loaded: LoadedModel, setting: int | Literal["auto"]) -> MicroBatch:
        """Return a version's micro-batch. A call with "auto" that searches may take twice `BUDGET_S` seconds.

        A number in the settings stays, unless so many rows do not fit into memory.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        key = (model, loaded.record.version)
        known = self._known.get(key)
        if known is None or self._now() >= known.counts_until:
            known = MicroBatch(setting) if setting != "auto" else self._found(loaded)
            self._known[key] = known
        return known

    def _found(self, loaded: LoadedModel) -> MicroBatch:
        record = self._recorded(loaded)
        if record is None or self._now() >= _counts_until(record):
            with host_locks.holding(host_locks.lock_file("micro-batch"), wait_s=BUDGET_S):
                record = self._recorded(loaded)  # another process may have searched meanwhile
                if record is None or self._now() >= _counts_until(record):
                    return self._search(loaded, record)
        return self._micro_batch(loaded, record)

    def _recorded(self, loaded: LoadedModel) -> MicroBatchRecord | None:
        record = self._registry.micro_batch(loaded.model, loaded.record.version, loaded.runtime.device)
        return record if record is not None and record.fingerprint == loaded.record.fingerprint else None

    def _search(self, loaded: LoadedModel, before: MicroBatchRecord | None) -> MicroBatch:
        inputs = warm_up_inputs(loaded.vectoriser, SMALLEST)
        taken = sum(values.nbytes for values in inputs.values())
        most = max(1, min(LARGEST, MOST_BYTES * SMALLEST // max(1, taken)))
        others_time = self._others_time()
        try:
            rows, rate = fastest_rows(partial(_warm_up_call, loaded), most=most, clock=self._clock)
        except PredictionFailed:  # such as a vocabulary that does not know the made-up values
            return MicroBatch(FALLBACK_ROWS)
        others = round(others_time.share(), 2)
        log.info(
            "model.micro_batch",
            model=loaded.model,
            version=loaded.record.version,
            device=loaded.runtime.device,
            rows=rows,
            rows_per_s=round(rate),
            others=others,
        )
        if before is not None and before.others <= others:
            rows, others = before.rows, before.others
        return self._micro_batch(loaded, self._remember(loaded, rows, others))

    def _micro_batch(self, loaded: LoadedModel, record: MicroBatchRecord) -> MicroBatch:
        until = _counts_until(record)
        return MicroBatch(record.rows, partial(self._remember, loaded), counts_until=until)

    def _remember(self, loaded: LoadedModel, rows: int, others: float = 0.0) -> MicroBatchRecord:
        """Store a number that was found, or that fits into memory, which no other process changes."""
        record = MicroBatchRecord(rows, loaded.record.fingerprint, others, self._now())
        self._registry.put_micro_batch(loaded.model, loaded.record.version, loaded.runtime.device, record)
        return record


def _counts_until(record: MicroBatchRecord) -> float:
    """Return the epoch seconds of the next search."""
    return math.inf if record.others <= CALM else record.found_at + AGAIN_AFTER_S


def fastest_rows(
    call_of: Callable[[int], Callable[[], object]],
    *,
    most: int,
    clock: Callable[[], float],
    budget_s: float = BUDGET_S,
) -> tuple[int, float]:
    """Return the smallest number of rows within 5 % of the best rate, and its rate in rows per second.

    `call_of(rows)` returns a call of the model with so many rows. Doubles the size until memory or the budget runs
    out, or until two sizes in a row bring no gain.

    Raises:
        PredictionFailed: the model fails at every size.
    """
    rates: dict[int, float] = {}
    end, worse = clock() + budget_s, 0
    rows = min(SMALLEST, most)
    while rows <= most and worse < 2 and (not rates or clock() < end):
        try:
            rates[rows] = _rate(call_of(rows), rows, clock)
        except ModelOutOfMemory:
            if rates:
                break
            most, rows = rows // 2, max(1, rows // 2)
            if most < 1:
                raise
            continue
        best_before = max((rate for size, rate in rates.items() if size < rows), default=0.0)
        worse = worse + 1 if rates[rows] * CLOSE_ENOUGH < best_before else 0
        rows *= 2
    best = max(rates.values())
    chosen = min(size for size, rate in rates.items() if rate >= best * CLOSE_ENOUGH)
    return chosen, rates[chosen]


def _warm_up_call(loaded: LoadedModel, rows: int) -> Callable[[], object]:
    return partial(loaded.predict, warm_up_inputs(loaded.vectoriser, rows))


def _rate(call: Callable[[], object], rows: int, clock: Callable[[], float]) -> float:
    """Return the rows per second of the fastest call. Leaves out the first one, which traces and allocates."""
    call()
    started, fastest_s, calls = clock(), float("inf"), 0
    while calls < 2 or clock() - started < _PER_SIZE_S:
        before = clock()
        call()
        fastest_s, calls = min(fastest_s, clock() - before), calls + 1
    return rows / max(fastest_s, 1e-9)
