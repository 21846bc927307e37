"""A run's record as Redis holds it, and a run as callers see it: its status, its chunks, its phases."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict, replace
from typing import Any

import pytest

from inference.batch import RunState, RunView
from inference.batch.chunk_states import ChunkStates, chunk_map
from inference.batch.gates import BadRows, Gate
from inference.batch.records import Engine, Fingerprint, RunDetails, RunRecord, Trigger
from inference.errors import UnknownFormat, Unreadable
from inference.redis.keys import TableKind
from inference.stored_data import DATA_FORMAT

RECORD = RunRecord(
    run_id="r", model="m", state=RunState.RUNNING, trigger=Trigger.API, source="s", created_at=1000.0,
    rows_total=100, chunks_total=10,
)  # fmt: skip


def view(*, now: float = 1100.0, **facts: Any) -> RunView:
    return RunView.of(replace(RECORD, **facts), now=now)


@pytest.mark.parametrize(
    ("facts", "rate", "eta_s"),
    [
        ({"started_at": 1010.0, "rows_done": 45}, 0.5, 110.0),
        ({"started_at": 1010.0, "rows_done": 100}, 1.1, 0.0),
        ({"started_at": 1010.0, "rows_done": 0}, None, None),
        ({"started_at": 1100.0, "rows_done": 5}, None, None),  # in the same instant
        ({"rows_done": 5}, None, None),
        # what was done before it was taken up again is not of this rate
        ({"started_at": 1010.0, "resumed_at": 1060.0, "rows_before": 25, "rows_done": 45}, 0.5, 110.0),
        ({"started_at": 1010.0, "resumed_at": 1060.0, "rows_before": 45, "rows_done": 45}, None, None),
        ({"started_at": 1010.0, "scored_at": 1020.0, "finished_at": 1090.0, "rows_done": 50}, 5.0, 10.0),
        ({"started_at": 1010.0, "finished_at": 1060.0, "rows_done": 50, "state": RunState.FAILED}, 1.0, None),
        ({"started_at": 1010.0, "scored_at": 1060.0, "rows_done": 100, "state": RunState.PUBLISHING}, 2.0, None),
        ({"started_at": 1010.0, "rows_done": 45, "rows_total": None}, 0.5, 0.0),
    ],
)
def test_the_rate_is_of_the_time_that_rows_were_scored_in(
    facts: dict[str, Any], rate: float | None, eta_s: float | None
) -> None:
    told = view(**facts)
    assert (told.rows_per_s, told.eta_s) == (rate, eta_s)


FULL: dict[str, Any] = {
    "entities_asked": 3, "since": 900.5, "engine": Engine.SPARK, "started_at": 1001.5, "scored_at": 1002.5,
    "finished_at": 1003.5, "resumed_at": 1001.75, "rows_before": 4, "chunks_done": 5, "attempts": 6, "rows_done": 7,
    "rows_quarantined": 8, "model_version": 9, "generation": 10, "feature_generation": 11,
    "fingerprint": Fingerprint("f", "id", None, 9, "h", 10, 20), "parquet_folder": "p", "quarantine_folder": "q",
    "gates": (Gate("size", True, "large"), Gate("drift", False, "far")), "bad_rows": (BadRows("x", "missing", 2),),
    "forced_by": "me", "forced_at": 1004.5, "spent": True, "error": "e", "last_error": "l", "format": 99,
}  # fmt: skip


def as_hash(record: RunRecord) -> dict[bytes, bytes]:
    written = {
        "fingerprint": lambda planned: json.dumps(asdict(planned)), "spent": lambda spent: "1" if spent else "0",
        "gates": lambda gates: json.dumps([asdict(gate) for gate in gates]),
        "bad_rows": lambda rows: json.dumps([asdict(bad) for bad in rows]),
    }  # fmt: skip
    facts = {name: getattr(record, name) for name in RunRecord.__dataclass_fields__}
    return {
        name.encode(): str(written.get(name, str)(value)).encode() for name, value in facts.items() if value is not None
    }


def test_each_field_of_a_record_is_read_back_as_itself() -> None:
    record = replace(RECORD, **FULL)
    assert RunRecord.from_hash(as_hash(record)) == record


def test_a_record_that_was_just_opened_has_what_is_not_known_yet() -> None:
    opened = {"run_id": "r", "model": "m", "state": "queued", "trigger": "api", "source": "s", "created_at": "1000.0"}
    record = RunRecord.from_hash({name.encode(): value.encode() for name, value in opened.items()})
    assert record == replace(RECORD, state=RunState.QUEUED, rows_total=None, chunks_total=None)
    assert (record.engine, record.format, record.is_partial, record.forced) == (
        Engine.CELERY,
        DATA_FORMAT,
        False,
        False,
    )
    record.check_format()
    with pytest.raises(UnknownFormat, match="run r"):
        replace(RECORD, format=DATA_FORMAT + 1).check_format()


def test_what_is_remembered_of_a_lost_record_tells_what_became_of_it() -> None:
    record = replace(RECORD, **FULL)
    kept = {name.encode(): value.encode() for name, value in record.hash_after_loss("the data are gone").items()}
    found = RunRecord.from_hash(kept)
    told = ("run_id", "model", "source", "trigger", "engine", "created_at", "entities_asked", "since", "started_at",
            "chunks_total", "chunks_done", "attempts", "rows_total", "rows_done", "rows_quarantined", "model_version",
            "parquet_folder", "quarantine_folder", "format")  # fmt: skip
    assert {name: getattr(found, name) for name in told} == {name: getattr(record, name) for name in told}
    assert (found.state, found.error, found.spent) == (RunState.FAILED, "the data are gone", True)
    assert (found.generation, found.gates, found.fingerprint) == (None, (), None), "its parts are gone"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("state", "asleep", "state: must be "), ("rows_done", "-1", "rows_done: must be at least 0"),
        ("created_at", "inf", "created_at: must be finite"), ("gates", "[7]", "gates.0"),
        ("source", None, "source: is missing"), ("run_id", "../r", "run_id: does not fit"),
        ("fingerprint", "{}", "fingerprint.files: is missing"),
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_refused_with_the_field_at_fault(name: str, value: str | None, problem: str) -> None:
    data = as_hash(replace(RECORD, **FULL)) | {name.encode(): (value or "").encode()}
    if value is None:
        del data[name.encode()]
    with pytest.raises(Unreadable, match=problem):
        RunRecord.from_hash(data)


def test_the_plan_of_an_older_release_names_no_kind_of_rows_and_had_one_row_an_entity() -> None:
    planned = asdict(Fingerprint("f", "id", None, 9, "h", 10, 20))
    del planned["rows"]
    data = as_hash(RECORD) | {b"fingerprint": json.dumps(planned).encode()}
    assert RunRecord.from_hash(data).fingerprint == Fingerprint("f", "id", None, 9, "h", 10, 20, rows="one")


@pytest.mark.parametrize(
    ("facts", "partial"), [({}, False), ({"entities_asked": 0}, True), ({"since": 0.0}, True), ({"since": 5.0}, True)]
)
def test_a_partial_run_shows_no_generation_to_go_back_to(facts: dict[str, Any], partial: bool) -> None:
    told = view(generation=4, feature_generation=5, **facts)
    assert (told.generation, told.feature_generation) == ((None, None) if partial else (4, 5))


def test_a_run_knows_its_generation_in_each_table() -> None:
    record = replace(RECORD, generation=4, feature_generation=5)
    assert [record.generation_of(kind) for kind in (TableKind.PREDICTIONS, TableKind.FEATURES)] == [4, 5]


def test_a_view_is_told_in_plain_values_with_instants_in_words() -> None:
    told = view(**FULL, state=RunState.PUBLISHED).to_json()
    instants = {
        name: told[name] for name in ("created_at", "since", "started_at", "scored_at", "finished_at", "forced_at")
    }
    assert instants == {
        "created_at": "1970-01-01T00:16:40.000Z", "since": "1970-01-01T00:15:00.500Z",
        "started_at": "1970-01-01T00:16:41.500Z", "scored_at": "1970-01-01T00:16:42.500Z",
        "finished_at": "1970-01-01T00:16:43.500Z", "forced_at": "1970-01-01T00:16:44.500Z",
    }  # fmt: skip
    assert (told["state"], told["trigger"], told["engine"]) == ("published", "api", "spark")
    assert [gate["name"] for gate in told["gates"]] == ["size", "drift"]
    assert told["forced"] is True
    assert view().to_json()["finished_at"] is None


def states(done: Set[int], scoring: Set[int] = frozenset(), waiting: Set[int] = frozenset()) -> ChunkStates:
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
    return RunDetails.look_at(record, chunks, bad, can_resume=False, now=1060.0).to_json()


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
