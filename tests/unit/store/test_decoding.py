"""Which of a run's row and a single entry is served, to the second and to the instant."""

from __future__ import annotations

import numpy as np
import pytest

from inference.schema import DType, TensorSpec
from inference.store import Manifest, Origin
from inference.store.codec import codec_for, pack_overlay, schema_digest, since_change
from inference.store.reading import Fetched, decode_block, decode_entries, decode_for_change

FIELDS = (TensorSpec("y", DType.FLOAT32),)
BEGUN_AT = 100.0
MANIFEST = Manifest(
    number=7, fields=FIELDS, buckets=1, model_version=3, contract_hash="h", run_id="r", created_at=BEGUN_AT,
    deadline=1e9, rows_expected=1,
)  # fmt: skip


def row(value: float, as_of: float) -> bytes:
    [packed] = codec_for(FIELDS).pack({"y": np.array([value], np.float32)}, np.array([as_of])).to_pylist()
    return bytes(packed)


def fetched(
    as_of: float, computed_at: float, *, changed: bool = False, manifest: Manifest | None = MANIFEST
) -> Fetched:
    """Return a run's row of 50 s, whose value is 1, beside a single entry, whose value is 2."""
    [entry] = pack_overlay(FIELDS, [row(2.0, as_of)], computed_at, 3, Origin.REALTIME)
    rows = [None if manifest is None else row(1.0, 50)]
    schemas = {schema_digest(FIELDS): FIELDS}
    return Fetched(manifest, 3, rows, [since_change(entry) if changed else entry], schemas)


@pytest.mark.parametrize(
    ("as_of", "computed_at", "changed", "value"),
    [
        (51, 0.0, False, 2),
        (50, BEGUN_AT, False, 2),  # of the same second and the same instant
        (50, BEGUN_AT - 0.001, False, 1),
        (49, BEGUN_AT + 1000, False, 1),
        # computed since the features changed, from what the run could not know
        (49, BEGUN_AT, True, 2),
        (49, BEGUN_AT - 0.001, True, 1),
        (51, BEGUN_AT - 0.001, True, 2),
    ],
)
def test_the_newer_of_a_runs_row_and_a_single_entry_is_served(
    as_of: float, computed_at: float, changed: bool, value: float
) -> None:
    stored = fetched(as_of, computed_at, changed=changed)
    [entry] = decode_entries(stored)
    block, change = decode_block(stored), decode_for_change(stored)
    assert entry is not None
    assert block is not None
    assert change is not None
    is_single = value == 2
    assert (entry.values, entry.generation) == ({"y": value}, None if is_single else 7)
    assert (block.block["y"].tolist(), change.rows.block["y"].tolist()) == ([value], [value])
    assert change.known_at.tolist() == [computed_at if is_single else BEGUN_AT]
    assert change.rows.as_of.tolist() == [as_of if is_single else 50]


def test_a_single_entry_needs_no_run() -> None:
    stored = fetched(as_of=1, computed_at=2.5, manifest=None)
    [entry] = decode_entries(stored)
    change = decode_for_change(stored)
    assert entry is not None
    assert change is not None
    assert (entry.values, entry.computed_at) == ({"y": 2.0}, 2.5)
    assert (change.is_loaded, change.known_at.tolist(), change.rows.as_of.tolist()) == (False, [2.5], [1])


def test_of_nothing_there_is_nothing_to_change() -> None:
    nothing = Fetched(None, 3, [None, None])
    assert (decode_entries(nothing), decode_block(nothing), decode_for_change(nothing)) == ([None, None], None, None)
