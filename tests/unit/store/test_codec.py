"""Rows to bytes and back, and where they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from inference.errors import ContractError
from inference.schema import DType, TensorSpec
from inference.store.codec import (
    bucket_count,
    bucket_of,
    buckets_of,
    codec_for,
    pack_overlay,
    row_as_of,
    schema_digest,
    schema_from_text,
    schema_text,
    stored_id,
    stored_ids,
    unpack_overlay,
)
from inference.store.records import Manifest, Origin
from inference.store.wire import encode_window

legal_ids = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128),
    st.text(st.sampled_from("/🚀é\"'% x"), min_size=1, max_size=128),
).filter(lambda text: len(text.encode()) <= 512)

specs = st.builds(
    TensorSpec,
    st.just(""),
    st.sampled_from([*DType]),
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[tuple[TensorSpec, ...], dict[str, Any], int]:
    rows = draw(st.integers(1, 4))
    shapes = draw(st.lists(specs, min_size=1, max_size=4))
    fields = tuple(TensorSpec(f"as_of{i}", spec.dtype, spec.shape) for i, spec in enumerate(shapes))
    block = {}
    for spec in fields:
        shape = (rows, *spec.shape)
        if spec.dtype is DType.STRING:
            texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
            block[spec.name] = draw(st_np.arrays(object, shape, elements=texts))
        else:
            block[spec.name] = draw(st_np.arrays(spec.dtype.numpy, shape))
    return fields, block, rows


@given(blocks(), st.integers(0, 2**32 - 1))
def test_a_block_comes_back_bit_for_bit(drawn: Any, as_of: int) -> None:
    fields, block, rows = drawn
    codec = codec_for(fields)
    packed = codec.pack(block, np.full(rows, float(as_of))).to_pylist()
    unpacked, stamps = codec.unpack_block(packed)
    for spec in fields:
        assert unpacked[spec.name].dtype == spec.dtype.numpy
        if spec.dtype is DType.STRING:
            assert unpacked[spec.name].tolist() == block[spec.name].tolist()
        else:
            assert unpacked[spec.name].tobytes() == block[spec.name].tobytes()
    values = [row for _, row in codec.unpack_rows(packed)]
    assert [list(row) for row in values] == [[spec.name for spec in fields]] * rows
    np.testing.assert_equal(
        [row[fields[0].name] for row in values], [value.tolist() if hasattr(value, "tolist") else value
                                                  for value in block[fields[0].name]],
    )  # fmt: skip
    assert [row_as_of(row) for row in packed] == [as_of] * rows == [stamp for stamp, _ in codec.unpack_rows(packed)]
    assert stamps.tolist() == [as_of] * rows


def test_one_float_takes_eight_bytes_in_a_generation_and_27_in_the_overlay() -> None:
    fields = (TensorSpec("p", DType.FLOAT32),)
    rows = codec_for(fields).pack({"p": np.ones(1, np.float32)}, np.zeros(1)).to_pylist()
    assert len(rows[0]) == 8
    assert len(pack_overlay(fields, rows, 1.0, 1, Origin.REALTIME)[0]) == 27


@given(st.floats(0, 1e11), st.integers(0, 2**32 - 1), st.sampled_from([*Origin]))
def test_an_overlay_header_comes_back(computed_at: float, version: int, origin: Origin) -> None:
    fields = (TensorSpec("p", DType.STRING),)
    rows = codec_for(fields).pack({"p": np.array(["é"], object)}, np.array([77.0])).to_pylist()
    header, row = unpack_overlay(pack_overlay(fields, rows, computed_at, version, origin)[0])
    assert row == rows[0]
    assert header == (computed_at, version, origin, schema_digest(fields), 77, False)
    assert schema_from_text(schema_text(fields)) == fields


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "'p' is missing"),
        ({"p": np.zeros((2, 1), np.float32)}, "declared float32"),
        ({"p": np.array(["a", "b"])}, "declared float32"),
        ({"p": np.zeros(3, np.float32)}, "3 rows"),
    ],
)
def test_a_block_that_does_not_fit_the_fields_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        codec_for((TensorSpec("p", DType.FLOAT32),)).pack(block, np.zeros(2))


@given(st.lists(legal_ids, min_size=1, max_size=20), st.sampled_from([1, 16, 1 << 17]))
def test_ids_are_placed_alike_one_by_one_and_by_column(ids: list[str], buckets: int) -> None:
    column = pa.array(ids, pa.string())
    assert buckets_of(column, buckets).tolist() == [bucket_of(entity_id, buckets) for entity_id in ids]
    assert stored_ids(column).to_pylist() == [stored_id(entity_id) for entity_id in ids]
    assert all(len(stored_id(entity_id)) <= 60 for entity_id in ids)


def test_neighbours_share_a_bucket() -> None:
    assert len({bucket_of(f"user_{number}", 1 << 20) for number in range(120, 140)}) == 2


@given(
    st.lists(st.tuples(legal_ids, st.binary(min_size=1, max_size=12)), min_size=1, max_size=30),
    st.sampled_from([1, 100, 10**6]),
    st.sampled_from([4, 1 << 20]),
)
def test_an_encoded_window_is_what_a_redis_client_would_send(
    pairs: list[tuple[str, bytes]], piece_bytes: int, buckets: int
) -> None:
    ids, rows = pa.array([p[0] for p in pairs]), pa.array([p[1] for p in pairs], pa.large_binary())
    pieces = list(
        encode_window(ids, rows, bucket_form="k:{%s}", buckets=buckets, deadline=123, piece_bytes=lambda: piece_bytes)
    )
    sent = b"".join(piece.data for piece in pieces)
    expected = b""
    hit = sorted({bucket_of(entity_id, buckets) for entity_id, _ in pairs})
    for bucket in hit:
        fields = [part for i, row in pairs if bucket_of(i, buckets) == bucket for part in (stored_id(i), row)]
        expected += _resp(b"HSET", b"k:{%d}" % bucket, *fields) + _resp(b"EXPIREAT", b"k:{%d}" % bucket, b"123")
    assert sent == expected
    assert sum(piece.replies for piece in pieces) == 2 * len(hit)


@pytest.mark.parametrize("buckets", [4, 1 << 16, 1 << 20])
def test_many_rows_of_a_bucket_are_sent_in_their_own_order(buckets: int) -> None:
    numbers = [(n * 7919) % 4096 for n in range(4096)]  # each once, in no order
    ids, rows = pa.array([f"user_{n}" for n in numbers]), pa.array([b"%d" % n for n in numbers], pa.large_binary())
    [piece] = encode_window(ids, rows, bucket_form="k:{%s}", buckets=buckets, deadline=1, piece_bytes=lambda: 1 << 30)
    by_bucket: dict[int, list[bytes]] = {}
    for n in numbers:
        by_bucket.setdefault(bucket_of(f"user_{n}", buckets), []).extend((stored_id(f"user_{n}"), b"%d" % n))
    expected = [
        _resp(b"HSET", b"k:{%d}" % one, *by_bucket[one]) + _resp(b"EXPIREAT", b"k:{%d}" % one, b"1")
        for one in sorted(by_bucket)
    ]
    assert bytes(piece.data) == b"".join(expected)


def test_buckets_hold_64_ids_on_average() -> None:
    assert [bucket_count(rows) for rows in (0, 1, 64, 65, 1_000_000)] == [1, 1, 1, 2, 15_625]


def test_a_manifest_survives_json() -> None:
    fields = (TensorSpec("p", DType.FLOAT32, (2, -1)),)
    manifest = Manifest(1, fields, 8, 2, "hash", None, 1.25, 2.5, 1000)
    assert Manifest.from_json(manifest.to_json()) == manifest


def _resp(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
