"""Hashes of entity ids: equal for equal ids, different for different ones, wherever they stand in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from inference.sources import hash_ids, repeated_hashes

#: of each length there are some that differ in one byte, some with zeros, and some of several bytes a character
IDS = [
    text
    for length in range(600)
    for text in ("a" * length, "\0" * length, f"{'a' * length}b", f"b{'a' * length}", f"é{'a' * length}")
]


def distinct(texts: list[str]) -> list[str]:
    """Return texts without repeats; of a text that is too long for an id, the first 512 bytes count."""
    return list({(len(text.encode()), text.encode()[:512]): text for text in texts}.values())


def test_different_ids_have_different_hashes() -> None:
    ids = distinct(IDS)
    assert len(np.unique(hash_ids(pa.array(ids)))) == len(ids)


def test_ids_that_count_up_have_different_hashes() -> None:
    ids = pa.array([f"user_{number}" for number in range(300_000)])
    assert len(repeated_hashes(hash_ids(ids))) == 0


def test_an_id_has_the_same_hash_wherever_it_stands() -> None:
    whole = hash_ids(pa.array(IDS))
    assert hash_ids(pa.array(["x", *IDS, "y"])[1:-1]).tolist() == whole.tolist()
    assert hash_ids(pa.array(IDS, pa.large_string())).tolist() == whole.tolist()
    assert [hash_ids(pa.array([text]))[0] for text in IDS] == whole.tolist()


def test_no_ids_have_no_hashes() -> None:
    assert hash_ids(pa.array([], pa.string())).tolist() == []


def test_each_further_row_of_an_id_counts_as_a_repeat() -> None:
    hashes = hash_ids(pa.array(["a", "b", "a", "c", "a", "b"]))
    a, b = hash_ids(pa.array(["a", "b"])).tolist()
    assert sorted(repeated_hashes(hashes).tolist()) == sorted([a, a, b])
