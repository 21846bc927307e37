from __future__ import annotations

from inference.batch.details import chunk_map
from inference.batch.ledger import ChunkStates


def states(done: set[int], scoring: set[int] = frozenset(), waiting: set[int] = frozenset()) -> ChunkStates:  # type: ignore[assignment]
    return ChunkStates(frozenset(done), frozenset(scoring), frozenset(waiting))


def test_few_chunks_have_a_cell_each() -> None:
    assert chunk_map(states({0, 2}, {1}, {3}), 6) == "#>#o.."


def test_many_chunks_share_sixty_cells() -> None:
    text = chunk_map(states(set(range(50)) | {55}, {52}), 120)

    assert len(text) == 60
    assert text[:25] == "#" * 25
    assert (text[26], text[27], text[28]) == (">", "+", ".")


def test_a_run_without_a_plan_has_no_map() -> None:
    assert chunk_map(states(set()), 0) == ""
