"""The file of a generation: each id finds its own row, and no id another's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from inference.errors import Unreadable
from inference.local_reader.packed import PackedGeneration, PackedWriter
from inference.schema import DType, TensorSpec
from inference.store import Manifest, StoredBatch
from inference.store.codec import codec_for, stored_id

SCORE = (TensorSpec("score", DType.FLOAT32),)
MIXED = (TensorSpec("label", DType.STRING), TensorSpec("vector", DType.FLOAT64, (3,)), TensorSpec("n", DType.INT64))


def manifest_of(fields: tuple[TensorSpec, ...], **more: Any) -> Manifest:
    return Manifest(7, fields, 4, 3, "c", None, 1000.0, 9000.0, 10, **more)


def batch_of(ids: Sequence[str], rows: Sequence[bytes]) -> StoredBatch:
    parts = [part for pair in zip(map(stored_id, ids), rows, strict=True) for part in pair]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    lengths = np.array([len(part) for part in parts], np.int64)
    data = np.frombuffer(b"".join(parts) + b"\r\n", np.uint8)
    buckets = np.zeros(len(ids), np.uint32)
    return StoredBatch(data, buckets, starts[::2], lengths[::2], starts[1::2], lengths[1::2])


def packed(path: Path, ids: Sequence[str], block: dict[str, Any], manifest: Manifest) -> PackedGeneration:
    """Write rows whose `as_of` is 500, in two batches, and map them."""
    rows = codec_for(manifest.fields).pack(block, np.full(len(ids), 500.0)).to_pylist()
    with path.open("wb") as file:
        writer = PackedWriter(file, manifest)
        half = len(ids) // 2
        for part in (slice(None, half), slice(half, None)):
            if ids[part]:
                writer.add(batch_of(ids[part], rows[part]))
        writer.finish()
    return PackedGeneration(path)


def ids_of_all_lengths() -> list[str]:
    numbers = [str(n) for n in (0, 7, 42, 10**18)]
    return [*numbers, *("x" * length for length in range(1, 130)), "Zürich", "東京", "é" * 30, "é" * 31]


def test_ids_of_each_length_find_their_own_rows(tmp_path: Path) -> None:
    ids = ids_of_all_lengths()
    file = packed(tmp_path / "f", ids, {"score": np.arange(len(ids), dtype=np.float32)}, manifest_of(SCORE))
    assert [file.find(one) for one in ids] == [(500, float(n)) for n in range(len(ids))]
    order = np.random.default_rng(1).permutation(len(ids))
    found = file.find_many([ids[i] for i in order])
    assert found.found.all()
    assert found.block["score"].tolist() == order.tolist()
    assert set(found.as_of.tolist()) == {500.0}


def test_other_ids_find_nothing(tmp_path: Path) -> None:
    ids = ids_of_all_lengths()
    file = packed(tmp_path / "f", ids, {"score": np.ones(len(ids), np.float32)}, manifest_of(SCORE))
    others = [*(one + "y" for one in ids), *(f"entity {n}" for n in range(20_000)), "x" * 400, ""]
    assert [one for one in others if file.find(one) is not None] == []
    assert not file.find_many(others).found.any()
    assert len(file.find_many([]).found) == 0


def test_ids_with_one_checksum_are_told_apart(tmp_path: Path) -> None:
    alike: defaultdict[int, list[str]] = defaultdict(list)
    for number in range(200_000):
        alike[crc32(b"id %x" % (number * 2_654_435_761))].append(f"id {number * 2_654_435_761:x}")
    pairs = [ids for ids in alike.values() if len(ids) > 1]
    assert pairs
    stored = [ids[0] for ids in pairs]
    file = packed(tmp_path / "f", stored, {"score": np.ones(len(stored), np.float32)}, manifest_of(SCORE))
    for first, second in (ids[:2] for ids in pairs):
        assert file.find(first) == (500, 1.0)
        assert file.find(second) is None
        assert file.find_many([second, first]).found.tolist() == [False, True]


def test_rows_that_differ_in_size(tmp_path: Path) -> None:
    ids = [f"e{n}" for n in range(300)]
    block = {
        "label": np.array(["é" * (n % 9) for n in range(300)], object),
        "vector": np.arange(900.0).reshape(300, 3),
        "n": np.arange(300),
    }
    file = packed(tmp_path / "f", ids, block, manifest_of(MIXED))
    assert file.find("e8") == (500, {"label": "é" * 8, "vector": [24.0, 25.0, 26.0], "n": 8})
    found = file.find_many(["e8", "nobody", "e299"])
    assert found.found.tolist() == [True, False, True]
    assert found.block["label"].tolist() == ["é" * 8, "", "é" * 2]
    assert found.block["vector"][2].tolist() == [897.0, 898.0, 899.0]
    nothing = file.find_many(["nobody"])
    assert (nothing.found.tolist(), nothing.block["n"].tolist()) == ([False], [0])


def test_one_age_of_all_rows_stands_in_the_manifest(tmp_path: Path) -> None:
    file = packed(tmp_path / "f", ["a"], {"score": np.ones(1, np.float32)}, manifest_of(SCORE, rows_as_of=800))
    assert file.find("a") == (800, 1.0)
    assert file.find_many(["a", "b"]).as_of.tolist() == [800.0, 0.0]


def test_an_empty_generation(tmp_path: Path) -> None:
    file = packed(tmp_path / "f", [], {"score": np.ones(0, np.float32)}, manifest_of(SCORE))
    assert (file.rows, file.find("a"), file.find_many(["a"]).found.tolist()) == (0, None, [False])


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100, b"whole"])
def test_what_is_no_whole_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    file = packed(path, ["a"], {"score": np.ones(1, np.float32)}, manifest_of(SCORE))
    assert file.find("a") is not None
    whole = path.read_bytes()
    (tmp_path / "g").write_bytes(whole[10:] if content == b"whole" else content)
    with pytest.raises(Unreadable, match="g is"):
        PackedGeneration(tmp_path / "g")
