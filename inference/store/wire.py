"""A window of rows as the bytes that go to Redis, encoded by column with Arrow.

Grouping and packing pairs one by one in Python takes about as long as Redis takes to store them; joined as Arrow
columns, they take two fifths of that CPU time (250 000 float32 rows in 8 192 buckets: 0.74 → 1.96 M rows a second).
The protocol is RESP: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inference.store.layout import buckets_of, stored_ids


def encode_window(ids: Any, rows: Any, *, bucket_prefix: str, buckets: int, deadline: int) -> Iterator[bytes]:
    """Yield each bucket's commands: HSET of its rows in the order of the ids, and EXPIREAT `deadline`.

    `ids`: Arrow text without nulls; `rows`: Arrow binary of the same length. The expiry follows each HSET,
    so that a straggler that writes after collection leaves no key for ever.
    """
    if len(ids) == 0:
        return
    bucket = buckets_of(ids, buckets)
    # narrow integers are sorted by radix, in linear time
    order = np.argsort(bucket.astype(np.uint16) if buckets <= 1 << 16 else bucket, kind="stable")
    pairs = _encode_pairs(stored_ids(ids), rows).take(pa.array(order))
    offsets = np.frombuffer(pairs.buffers()[1], np.int64)
    data = memoryview(pairs.buffers()[2])
    hit, starts = np.unique(bucket[order], return_index=True)
    ends = np.append(starts[1:], len(bucket))
    prefix = bucket_prefix.encode()
    for number, count, start, end in zip(
        hit.tolist(), (ends - starts).tolist(), offsets[starts].tolist(), offsets[ends].tolist(), strict=True
    ):
        key = b"%b%d" % (prefix, number)
        yield b"".join((b"*%d\r\n$4\r\nHSET\r\n" % (2 + 2 * count), _bulk(key), data[start:end]))
        yield b"*3\r\n$8\r\nEXPIREAT\r\n%b%b" % (_bulk(key), _bulk(b"%d" % deadline))


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _encode_pairs(fields: Any, rows: Any) -> Any:
    """Return each field and row as two RESP bulk strings in one binary value."""
    end = _scalar(b"\r\n")
    return pc.binary_join_element_wise(_length_lines(fields), fields, end, _length_lines(rows), rows, end, _scalar(b""))


def _length_lines(values: Any) -> Any:
    """Return the line that announces each value's length: `$13` and CR LF."""
    lengths = pc.binary_length(values)
    bounds = pc.min_max(lengths)
    if bounds["min"] == bounds["max"]:
        return _scalar(b"$%d\r\n" % bounds["min"].as_py())
    distinct = lengths.dictionary_encode()
    lines = [b"$%d\r\n" % length for length in distinct.dictionary.to_pylist()]
    return pa.array(lines, pa.large_binary()).take(distinct.indices)


def _scalar(value: bytes) -> Any:
    return pa.scalar(value, pa.large_binary())
