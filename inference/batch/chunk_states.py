"""The states of a run's chunks: which are done, scored, waiting; their numbers, and their map in characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

#: cells that the map of a run's chunks has at most; with more chunks, each stands for several
MAP_CELLS = 60
#: the characters of that map
DONE, PARTLY, SCORING, WAITING, UNSENT = "#", "+", ">", "o", "."


@dataclass(frozen=True)
class ChunkStates:
    """Chunks by state. A chunk in none of the sets was not sent yet."""

    done: frozenset[int]
    #: a worker holds them
    scoring: frozenset[int] = frozenset()
    #: sent, and no worker has taken them
    waiting: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ChunkCounts:
    """How many chunks are in each state; `map` has a character for each, or for each of 60 stretches of them."""

    done: int
    scoring: int
    waiting: int
    unsent: int
    map: str


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
