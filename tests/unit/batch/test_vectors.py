"""Digests of vectors: any change shows, in files that are merged, sorted and searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inference.batch import vectors
from inference.batch.sinks import Window
from inference.batch.vectors import (
    Facts,
    VectorCheck,
    VectorSink,
    digests_of,
    merge_parts,
    open_vectors,
    remove_vectors,
)
from inference.errors import SourceError
from inference.sources import hash_ids
from inference.storage import Location

KEY = bytes(range(16))
FACTS = Facts("r", 1, "f", "c", KEY.hex(), 0, "")
#: more rows than digests_of takes at once
MANY = 5_000


def write_part(folder: str, chunk: int, ids: list[str], digests: list[int], *, as_of: float = 1000.5) -> None:
    sink = VectorSink(folder, chunk=chunk, token="t", latest=2000.0, is_needed=True)
    if ids:
        block = np.zeros(len(ids), np.float32)
        sink.write(Window(pa.array(ids), {"y": block}, np.full(len(ids), as_of), None, np.array(digests, np.uint64)))
    sink.commit()


KINDS = st.sampled_from([np.float32, np.float64, np.int8, np.bool_, np.float16])


@given(hnp.arrays(KINDS, st.tuples(st.just(6), st.integers(1, 5))), st.integers(0, 5))
def test_equal_vectors_have_equal_digests_and_a_changed_bit_shows(values: Any, row: int) -> None:
    texts = np.array(["a", "", "ü", "a" * 600, "b", "c"], object)
    before = digests_of({"x": values, "t": texts}, KEY)
    assert (digests_of({"x": values.copy(), "t": texts.copy()}, KEY) == before).all()

    moved = values.copy()
    bits = moved.view(np.uint8).reshape(6, -1)
    bits[row, -1] ^= 1
    changed = digests_of({"x": moved, "t": texts}, KEY) != before
    assert changed.tolist() == [number == row for number in range(6)]

    texts[3] = "a" * 599 + "b"  # also far behind in a long text
    assert (digests_of({"x": values, "t": texts}, KEY) != before).tolist() == [False, False, False, True, False, False]


def test_the_key_decides_the_digests_and_the_number_of_rows_does_not() -> None:
    block = {"x": np.arange(MANY * 3, dtype=np.float32).reshape(MANY, 3), "n": np.arange(MANY)}
    digests = digests_of(block, KEY)
    assert len(set(digests.tolist())) == MANY
    alone = digests_of({name: values[4321:4322] for name, values in block.items()}, KEY)
    assert alone == digests[4321]
    assert (digests_of(block, b"another key") != digests).all()


@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_parts_become_one_file_in_which_each_id_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(vectors, "_MERGED_AT_ONCE", at_once)
    folder = str(tmp_path / "r")
    write_part(folder, 0, [f"e{n}" for n in range(40)], list(range(40)))
    write_part(folder, 1, [], [])
    write_part(folder, 2, ["late", "twice", "twice"], [7, 8, 8], as_of=9000.0)
    whole = merge_parts(folder, Facts("r", 1, "f", "c", KEY.hex(), 0, "out"), chunks=3)

    assert [path.name for path in (tmp_path / "r").iterdir()] == ["vectors.arrow"]
    assert (whole.rows, whole.facts.parquet_folder) == (43, "out")
    found = whole.find(hash_ids(pa.array(["e3", "nobody", "late", "twice", "e39"])))
    assert found.known.tolist() == [True, False, True, False, True]  # which of two is meant, nobody knows
    assert found.digests.tolist() == [3, 0, 7, 0, 39]
    assert found.as_of.tolist() == [1000, 0, 2000, 0, 1000]  # not later than the table stores
    assert found.places.tolist() == [3, 0, 2 << 32, 0, 39]

    assert merge_parts(folder, FACTS, chunks=3).rows == 43  # again
    write_part(str(tmp_path / "s"), 0, [f"e{n}" for n in range(1, 41)], [0] * 40)
    other = merge_parts(str(tmp_path / "s"), FACTS, chunks=1)
    gone = np.concatenate([hashes for hashes, _ in whole.without(other)])
    assert set(gone.tolist()) == set(hash_ids(pa.array(["e0", "late", "twice"])).tolist())
    assert list(whole.without(whole)) == []


def test_no_rows_at_all_are_vectors_too(tmp_path: Path) -> None:
    write_part(str(tmp_path), 0, [], [])
    nothing = merge_parts(str(tmp_path), FACTS, chunks=1)
    check = VectorCheck(KEY, nothing, None, 0.0)
    for ids in (["a"], []):  # also a batch whose rows were all refused
        inputs = {"x": np.ones((len(ids), 2), np.float32), "t": np.array(ids, object)}
        compared = check.compare(pa.array(ids, pa.string()), inputs, np.zeros(len(ids)))
        assert compared.same.tolist() == [False] * len(ids)


def test_a_missing_part_is_named_with_the_setting(tmp_path: Path) -> None:
    write_part(str(tmp_path), 1, ["a"], [1])
    with pytest.raises(SourceError, match="holds the vectors of 1 of 2 chunks: delta_path must be a folder"):
        merge_parts(str(tmp_path), FACTS, chunks=2)


def test_a_damaged_file_is_refused_and_a_foreign_one_stays(tmp_path: Path) -> None:
    assert open_vectors(str(tmp_path)) is None
    (tmp_path / "vectors.arrow").write_bytes(b"no Arrow file")
    with pytest.raises(SourceError, match="cannot be read or written"):
        open_vectors(str(tmp_path))
    (tmp_path / "mine").touch()
    remove_vectors(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    remove_vectors(str(tmp_path / "nowhere"))


def test_vectors_in_an_object_store_are_sent_whole_and_read_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    location = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "b", "s3://")
    monkeypatch.setattr(vectors, "open_location", lambda folder: location)
    for chunk in range(2):
        write_part("s3://b", chunk, [f"{chunk}-{n}" for n in range(5)], list(range(5)))
    whole = merge_parts("s3://b", FACTS, chunks=2)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["vectors.arrow"]
    assert whole.find(hash_ids(pa.array(["1-4"]))).digests.tolist() == [4]
    remove_vectors("s3://b")
    assert list((tmp_path / "b").iterdir()) == []
