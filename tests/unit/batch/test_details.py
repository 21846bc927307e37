from __future__ import annotations

from typing import Any

import pytest

from inference.batch import RunState, RunView
from inference.batch.details import RunDetails, chunk_map
from inference.batch.gates import BadRows
from inference.batch.ledger import ChunkStates
from inference.batch.records import RunRecord, Trigger


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


NO_CHUNKS = ChunkStates(frozenset())


def details(chunks: ChunkStates = NO_CHUNKS, **facts: Any) -> dict[str, Any]:
    """What a run of 10 chunks, asked for at 1000.0, looks like at 1060.0."""
    own = {"state": RunState.RUNNING, "chunks_total": 10, **facts}
    record = RunRecord(run_id="r", model="m", trigger=Trigger.API, source="s", created_at=1000.0, **own)
    bad = [BadRows("x", f"reason {n}", n) for n in range(30)]
    return RunDetails(RunView.of(record, now=1060.0), record, chunks, bad, 1060.0).to_json()


def test_chunks_are_told_by_what_becomes_of_them() -> None:
    told = details(states({0, 1, 2}, {3, 4}, {5}), chunks_done=3)["chunks"]
    assert told == {"done": 3, "scoring": 2, "waiting": 1, "unsent": 4, "map": "###>>o...."}
    over = details(states({0, 1, 2}, {3, 4}, {5}), chunks_done=3, state=RunState.FAILED)["chunks"]
    assert over == {"done": 3, "scoring": 0, "waiting": 0, "unsent": 7, "map": "###......."}
    assert details(chunks_total=None)["chunks"] == {"done": 0, "scoring": 0, "waiting": 0, "unsent": 0, "map": ""}


@pytest.mark.parametrize(
    ("facts", "phases"),
    [
        ({}, (60, None, None)),
        ({"started_at": 1010.0}, (10, 50, None)),
        ({"started_at": 1010.0, "scored_at": 1030.0}, (10, 20, 30)),
        ({"started_at": 1010.0, "scored_at": 1030.0, "finished_at": 1035.5}, (10, 20, 5.5)),
        ({"started_at": 1010.0, "finished_at": 1025.0}, (10, 15, None)),
        ({"finished_at": 1020.0}, (20, None, None)),
        ({"started_at": 999.0, "finished_at": 1020.0}, (0, 21, None)),  # clocks differ
    ],
)
def test_phases_end_with_the_next_one_the_run_or_now(facts: dict[str, float], phases: tuple[float | None, ...]) -> None:
    assert tuple(details(**facts)["phases"].values()) == phases


def test_what_was_left_out_is_told_with_twenty_reasons_and_its_folder_only_if_there_is_any() -> None:
    told = details(rows_quarantined=1, quarantine_folder="q", attempts=7, last_error="no", parquet_folder="p")
    assert (told["quarantine"]["folder"], len(told["quarantine"]["reasons"])) == ("q", 20)
    assert told["quarantine"]["reasons"][1]["reason"] == "reason 1"
    assert (told["attempts"], told["last_error"], told["parquet_folder"]) == (7, "no", "p")
    assert details(quarantine_folder="q")["quarantine"]["folder"] is None


def test_sixty_chunks_have_a_cell_each_and_one_more_shares() -> None:
    assert chunk_map(states({59}), 60) == "." * 59 + "#"
    assert chunk_map(states({60}), 61) == "." * 59 + "+"


def test_a_map_takes_no_longer_for_more_chunks() -> None:
    assert chunk_map(states({0, 7}, {10**300 - 1}), 10**300) == "+" + "." * 58 + ">"
