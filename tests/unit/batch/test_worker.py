"""What a worker tells of a chunk that it finished, and when it has the reconciler look."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inference.batch.ledger import Claim, Progress
from inference.batch.scoring import ChunkResult
from inference.batch.worker import ChunkWorker, _rows_at_once
from inference.errors import StaleAttempt
from inference.features import Feature, FeatureContract
from inference.schema import DType


def looks(max_in_flight: int, *, total: int = 100) -> list[int]:
    """Return with how many chunks left on the queue a look is asked for, as a full queue runs empty."""
    nothing = cast(Any, None)
    worker = ChunkWorker(nothing, nothing, nothing, nothing, nothing, nothing)
    left = range(max_in_flight - 1, -1, -1)
    finished = {n: Progress(done=max_in_flight - n, total=total, next_chunk=max_in_flight, in_flight=n) for n in left}
    return [n for n, progress in finished.items() if worker._wants_poke(progress)]


@pytest.mark.parametrize(("max_in_flight", "at"), [(1, [0]), (2, [1, 0]), (32, [8, 2, 1, 0])])
def test_a_queue_that_runs_low_is_filled_again_without_waiting_for_the_timer(max_in_flight: int, at: list[int]) -> None:
    assert looks(max_in_flight) == at


def test_no_look_is_asked_for_while_nothing_is_left_to_send_until_the_last_chunk_is_done() -> None:
    assert looks(4, total=4) == [0]


class OneLedger:
    """Takes what became of a chunk; `progress` None: the chunk was another's in the end."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.told: list[Any] = []

    def finish(self, claim: Claim, result: Any, **counts: Any) -> Progress | None:
        self.told.append((claim, result, counts))
        return self.progress


CLAIM = Claim("r1", chunk=4, token="t", attempt=3)
RESULT = ChunkResult(rows=100, quarantined=7, non_finite=2)


def test_what_became_of_a_chunk_is_told_with_its_attempt_and_its_time() -> None:
    ledger, pokes, nothing = OneLedger(Progress(5, 9, 3, 6)), [], cast(Any, None)
    work = ChunkWorker(nothing, cast(Any, ledger), nothing, nothing, lambda: pokes.append(1), nothing)
    work._finish(CLAIM, RESULT, 1.25)
    facts = {"rows": 100, "outside": 0, "quarantined": 7, "non_finite": 2, "bad_rows": [], "attempt": 3, "took_s": 1.25}
    assert ledger.told == [(CLAIM, facts, {"rows": 100, "quarantined": 9, "histogram": {}})]
    assert pokes == []
    ledger.progress = Progress(9, 9, 0, 9)
    work._finish(CLAIM, RESULT, 1.25)
    assert pokes == [1]


def test_a_chunk_that_another_worker_finished_is_no_success_and_wakes_nobody() -> None:
    ledger, pokes, nothing = OneLedger(None), [], cast(Any, None)
    work = ChunkWorker(nothing, cast(Any, ledger), nothing, nothing, lambda: pokes.append(1), nothing)
    with pytest.raises(StaleAttempt, match="another worker finished chunk 4 of run r1"):
        work._finish(CLAIM, RESULT, 1.25)
    assert pokes == []


@pytest.mark.parametrize(
    ("dtype", "width", "rows"),
    [(DType.FLOAT32, 1, 65_536), (DType.FLOAT32, 1024, 8192), (DType.STRING, 1024, 1024), (DType.FLOAT64, 1 << 30, 1)],
)
def test_fewer_wide_rows_are_read_at_once_and_a_text_counts_as_32_bytes(dtype: DType, width: int, rows: int) -> None:
    assert _rows_at_once(FeatureContract((Feature("x", dtype, (width,)),))) == rows
