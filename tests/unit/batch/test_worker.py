"""When a worker that finished a chunk has the reconciler look."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inference.batch.ledger import Progress
from inference.batch.worker import ChunkWorker


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
