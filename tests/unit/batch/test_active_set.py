from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batch.active_set import ActiveSet, DayRanking, DayRequests, Threshold, find_threshold
from inference.batch.plan import cut_row_groups
from inference.batch.records import Chunk
from inference.monitoring.access_sample import EVERYBODY, AccessSample, SampledDay, visits_at
from inference.monitoring.asked_filters import DAY_S, AskedFilters, Filter, filter_bytes, places_of
from inference.monitoring.id_hashes import id_hashes
from inference.sources import Slice, open_source, pack_mask

KEY, TODAY = bytes(range(16)), 20_000
HITS = 0.9


def names(numbers: Any) -> list[str]:
    return [f"e{number}" for number in numbers]


def filters_of(asked: dict[int, Any], days: int = 31) -> AskedFilters:
    """Filters of days: how many days ago → the numbers of the entities that were asked for."""
    by_age = []
    for age, numbers in asked.items():
        one = Filter(filter_bytes(1_000))
        one.add(places_of(id_hashes(names(numbers), KEY), one.size))
        by_age.append((age, one))
    return AskedFilters(KEY, 0.0, days, TODAY * DAY_S + 60.0, tuple(sorted(by_age, key=lambda each: each[0])))


@given(st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 199), max_size=40), max_size=31))
def test_a_history_has_every_day_on_which_an_entity_was_asked_for(asked: dict[int, list[int]]) -> None:
    histories = filters_of(asked).history(id_hashes(names(range(200)), KEY))

    for age, numbers in asked.items():
        assert (histories[numbers] >> np.uint64(age) & np.uint64(1)).all()
    nobody = np.setdiff1d(np.arange(200), [n for numbers in asked.values() for n in numbers])
    assert (histories[nobody] != 0).mean() < 0.01 if len(nobody) else True


@given(
    st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 199), max_size=40), min_size=1, max_size=31),
    st.sets(st.integers(0, 199), max_size=20),
    st.sampled_from([7, 60, 250]),
)
@settings(max_examples=30)
def test_the_set_holds_everybody_who_was_asked_for_and_everybody_new(
    tmp_path_factory: pytest.TempPathFactory, asked: dict[int, list[int]], new: set[int], group: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    pq.write_table(pa.table({"entity_id": names(range(200))}), path, row_group_size=group)
    source = open_source(str(path), as_text=["entity_id"])
    known = Filter(1 << 16)
    known.add(places_of(id_hashes(names(sorted(set(range(200)) - new)), KEY), known.size))
    pauses: list[None] = []
    active = ActiveSet("asked within 30d", "", filters_of(asked), lambda h: h != 0, known)
    active.give_way = lambda: pauses.append(None)

    pieces = list(
        active.mark(source, cut_row_groups(source.files, rows_per_chunk=17, bytes_per_chunk=1 << 30), "entity_id")
    )

    chosen = np.concatenate([piece.slice.rows_to_score for piece in pieces])
    asked_for = {number for numbers in asked.values() for number in numbers}
    assert chosen[sorted(asked_for | new)].all()
    assert sum(piece.rows for piece in pieces) == active.rows == 200
    assert active.rows_chosen == chosen.sum()
    assert len(pauses) == -(-200 // group)  # before each batch of ids
    assert active.rows_chosen <= len(asked_for | new) + 10  # a few too many


def test_a_chunk_keeps_which_of_its_rows_to_read_and_which_to_score() -> None:
    read, score = pack_mask(np.array([1, 0, 1, 1], bool)), pack_mask(np.array([1, 1, 0, 1], bool))
    chunk = Chunk(3, (Slice(0, 0, 8, 4, read, score), Slice(0, 1, 0, 4, None, score), Slice(1, 0, 0, 4, read)))

    again = Chunk.from_json(3, json.dumps(chunk.to_json()))

    assert again == chunk
    assert again.rows_to_score is not None
    assert again.rows_to_score.tolist() == [True, False, True, True, True, False, True, True, True, True]
    assert Chunk(0, (Slice(0, 0, 0, 4, read), Slice(0, 1, 0, 4))).rows_to_score is None


# --- the threshold ---


def sample_of(days: dict[int, dict[int, int]]) -> AccessSample:
    """A sample of everybody: how many days ago → number of an entity → its requests."""
    found = {}
    for ago, requests in days.items():
        hashes = np.repeat(id_hashes(names(requests), KEY), list(requests.values()))
        found[TODAY - ago] = SampledDay(visits_at(hashes, 43_200.0, EVERYBODY), EVERYBODY, len(hashes))
    return AccessSample.of(found, since=(TODAY - max(days)) * DAY_S, until=TODAY * DAY_S + 60.0)


def threshold_of(days: dict[int, dict[int, int]], hit_rate: float = HITS) -> tuple[Threshold | None, AskedFilters]:
    filters, sample = filters_of({ago: list(requests) for ago, requests in days.items()}), sample_of(days)
    histories = filters.history(sample.entity << np.uint64(16))
    return find_threshold(hit_rate, max(days) - 1, histories, sample), filters


def chosen(threshold: Threshold | None, filters: AskedFilters, numbers: Any) -> list[bool]:
    assert threshold is not None
    return threshold.chooses(filters.history(id_hashes(names(numbers), KEY))).tolist()


def test_days_count_and_older_days_count_less() -> None:
    histories = np.array([0b0, 0b1, 0b10, 0b11, 1 << 29, 1 << 30, 1 << 63], np.uint64)

    scores = DayRanking(0.5, 30).scores(histories)

    assert (scores / scores[1]).tolist() == pytest.approx([0, 1, 2**-0.5, 1 + 2**-0.5, 30**-0.5, 0, 0])


def test_an_entity_that_may_be_new_ranks_by_the_days_since_its_first() -> None:
    new, seldom, often = 0b11, 0b1000000011, 0b1111111111

    ranked = DayRanking(0.5, 30, unknown=0.1).scores(np.array([seldom, new, often], np.uint64))

    assert ranked.tolist() == sorted(ranked)
    by_days = DayRanking(0.5, 30).scores(np.array([new, seldom, often], np.uint64))
    assert by_days.tolist() == sorted(by_days)


def test_a_threshold_lets_in_those_who_get_most_requests() -> None:
    daily = dict.fromkeys(range(10), 95) | dict.fromkeys(range(10, 20), 5)
    seldom = {ago: {100 + ago: 50} for ago in range(1, 31)}  # somebody else each day
    days = {ago: daily | seldom[ago] for ago in range(1, 31)}

    threshold, filters = threshold_of(days)

    assert threshold is not None
    assert threshold.share == pytest.approx(1000 / 1050)
    assert chosen(threshold, filters, range(20)) == [True] * 20
    assert chosen(threshold, filters, range(101, 131)) == [False] * 30


def test_who_is_asked_for_today_is_as_good_as_asked_for_yesterday() -> None:
    days = {ago: dict.fromkeys(range(10), 100) for ago in range(1, 31)}
    threshold, _ = threshold_of(days)

    assert chosen(threshold, filters_of({0: [5], **{ago: [5] for ago in range(2, 31)}}), [5]) == [True]


def test_if_nobody_comes_twice_no_set_answers_enough() -> None:
    threshold, _ = threshold_of({ago: {10 * ago + i: 100 for i in range(10)} for ago in range(1, 31)})

    assert threshold is not None
    assert threshold.least == 0
    assert threshold.share < 0.02


def test_a_threshold_needs_a_thousand_requests() -> None:
    assert threshold_of({ago: {1: 100} for ago in range(1, 31)})[0] is None
    assert threshold_of({ago: {1: 150} for ago in range(1, 31)})[0] is not None


def test_requests_count_as_often_as_they_came() -> None:
    entity = id_hashes(names(range(4)), KEY)
    requests = DayRequests(entity[[0, 0, 1, 2]] >> np.uint64(16), np.array([5.0, 1.0, 3.0, 1.0]))

    requests.see(entity[[0, 3]])
    requests.see(entity[[3]])

    assert requests.share == pytest.approx(0.6)
