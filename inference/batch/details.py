"""One run looked at closely: its chunks, its phases, what it left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inference.batch.gates import BadRows
from inference.batch.ledger import ChunkStates
from inference.batch.records import RunRecord, RunView

#: cells that the map of a run's chunks has at most; with more chunks, each stands for several
MAP_CELLS = 60
#: what a cell of the map says
DONE, PARTLY, SCORING, WAITING, UNSENT = "#", "+", ">", "o", "."
#: reasons for rows left out that are named
_MAX_REASONS = 20


@dataclass(frozen=True)
class RunDetails:
    """A run's view with all that is known about it. Phases in seconds; None is not reached yet."""

    view: RunView
    record: RunRecord
    chunks: ChunkStates
    bad_rows: Sequence[BadRows]
    now: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the view's, and `chunks`, `attempts`, `phases`, `quarantine`, `last_error`."""
        return {
            **self.view.to_json(),
            "chunks": self._chunks(),
            "attempts": self.record.attempts,
            "phases": self._phases(),
            "quarantine": {
                "folder": self.record.quarantine_folder if self.record.rows_quarantined else None,
                "reasons": [bad.to_json() for bad in self.bad_rows[:_MAX_REASONS]],
            },
            "parquet_folder": self.record.parquet_folder,
            "last_error": self.record.last_error,
        }

    def _chunks(self) -> dict[str, Any]:
        total, going = self.record.chunks_total or 0, not self.record.state.is_over
        scoring = len(self.chunks.scoring) if going else 0
        waiting = len(self.chunks.waiting) if going else 0
        return {
            "done": self.record.chunks_done,
            "scoring": scoring,
            "waiting": waiting,
            "unsent": max(total - self.record.chunks_done - scoring - waiting, 0),
            "map": chunk_map(self.chunks if going else ChunkStates(self.chunks.done), total),
        }

    def _phases(self) -> dict[str, float | None]:
        record = self.record
        return {
            "queued_s": _between(record.created_at, record.started_at or record.finished_at or self.now),
            "scoring_s": _between(record.started_at, record.scored_at or record.finished_at or self.now),
            "publishing_s": _between(record.scored_at, record.finished_at or self.now),
        }


def chunk_map(chunks: ChunkStates, total: int) -> str:
    """Return one character for each chunk, or for each of 60 stretches of them, in order."""
    cells = min(total, MAP_CELLS)

    def counted(numbers: Iterable[int]) -> Counter[int]:
        return Counter(((number + 1) * cells - 1) // total for number in numbers if 0 <= number < total)

    done, scoring, waiting = counted(chunks.done), counted(chunks.scoring), counted(chunks.waiting)
    return "".join(
        DONE if done[cell] == total * (cell + 1) // cells - total * cell // cells
        else SCORING if scoring[cell]
        else WAITING if waiting[cell]
        else PARTLY if done[cell]
        else UNSENT
        for cell in range(cells)
    )  # fmt: skip


def _between(start: float | None, end: float) -> float | None:
    return None if start is None else round(max(end - start, 0.0), 3)
