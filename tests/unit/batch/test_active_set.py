from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.batch.active_set import ActiveSet, Ranking, Requests, Threshold, find_threshold
from inference.batch.plan import cut_row_groups
from inference.batch.records import Chunk
from inference.batch.selection import RowSlice
from inference.monitoring.access_sample import EVERYBODY, AccessSample, SampledDay, visits_at
from inference.monitoring.asked_filters import DAY_S, AskedFilters, Filter, filter_bytes, places_of
from inference.monitoring.id_hashes import Words, id_hashes
from inference.sources import open_source, pack_mask

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
