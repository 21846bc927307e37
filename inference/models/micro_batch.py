"""Finds the best number of rows of one model call, once for each version and kind of device, and remembers it.

Larger calls are faster until memory or caches run short. A laptop's CPU and a GPU differ in that by a factor of a
hundred.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from inference.errors import ModelOutOfMemory, PredictionFailed
from inference.logs import get_logger
from inference.models.loaded import LoadedModel
from inference.models.registry import MicroBatchRecord, ModelRegistry
from inference.models.warm_up import warm_up_inputs

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


class MicroBatch:
    """The rows a call of one model in this process. Several threads may share it: the number only shrinks."""

    def __init__(self, rows: int, remember: Callable[[int], object] | None = None) -> None:
        self.rows = rows
        self._remember = remember

    def shrink(self, failed_rows: int) -> None:
        """Use half of the number of rows that did not fit into memory, and remember that."""
        rows = max(1, failed_rows // 2)
        if rows < self.rows:
            self.rows = rows
            if self._remember:
                self._remember(rows)


class MicroBatches:
    """Returns the micro-batch of each loaded version: from memory, else from Redis, else by a search."""

    def __init__(self, registry: ModelRegistry, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._registry = registry
        self._clock = clock
        self._known: dict[tuple[str, int], MicroBatch] = {}

    def of(self, model: str, loaded: LoadedModel, setting: int | Literal["auto"]) -> MicroBatch:
        """Return a version's micro-batch. The first call with "auto" may take `BUDGET_S` seconds.

        A number in the settings stays, unless so many rows do not fit into memory.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        key = (model, loaded.record.version)
        known = self._known.get(key)
        if known is None:
            known = MicroBatch(setting) if setting != "auto" else self._remembered(loaded) or self._search(loaded)
            self._known[key] = known
        return known

    def _remembered(self, loaded: LoadedModel) -> MicroBatch | None:
        record = self._registry.micro_batch(loaded.model, loaded.record.version, loaded.runtime.device)
        if record is None or record.fingerprint != loaded.record.fingerprint:
            return None
        return self._micro_batch(loaded, record.rows)

    def _search(self, loaded: LoadedModel) -> MicroBatch:
        inputs = warm_up_inputs(loaded.vectoriser, SMALLEST)
        taken = sum(values.nbytes for values in inputs.values())
        most = max(1, min(LARGEST, MOST_BYTES * SMALLEST // max(1, taken)))
        try:
            rows, rate = fastest_rows(partial(_warm_up_call, loaded), most=most, clock=self._clock)
        except PredictionFailed:  # such as a vocabulary that does not know the made-up values
            return MicroBatch(FALLBACK_ROWS)
        log.info(
            "model.micro_batch",
            model=loaded.model,
            version=loaded.record.version,
            device=loaded.runtime.device,
            rows=rows,
            rows_per_s=round(rate),
        )
        self._remember(loaded, rows)
        return self._micro_batch(loaded, rows)

    def _micro_batch(self, loaded: LoadedModel, rows: int) -> MicroBatch:
        return MicroBatch(rows, lambda smaller: self._remember(loaded, smaller))

    def _remember(self, loaded: LoadedModel, rows: int) -> None:
        record = MicroBatchRecord(rows, loaded.record.fingerprint)
        self._registry.put_micro_batch(loaded.model, loaded.record.version, loaded.runtime.device, record)


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
