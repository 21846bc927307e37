"""Encodes a window of rows as bytes for Redis, by column with Arrow.

No Python runs for a row or a bucket: Arrow joins columns of keys, lengths and pairs, and one `take` puts them
in the order of the buckets. Encoding 250 000 float32 rows costs 0.25 µs of CPU a row; grouping and packing pairs
one by one costs 1.4, joining the columns and then looping over 8 192 buckets 0.6.
The protocol is RESP: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.redis.pipes import BulkCommands
from inference.store.codec import buckets_of, stored_ids


def encode_window(
    ids: Any, rows: Any, *, bucket_prefix: str, buckets: int, deadline: int, piece_bytes: Callable[[], int]
) -> Iterator[BulkCommands]:
    """Yield each bucket's commands in pieces: HSET of its rows in the order of the ids, then EXPIREAT `deadline`.

    `ids`: Arrow text without nulls; `rows`: Arrow binary of the same length; `piece_bytes`: returns the approximate
    size of the next piece. The expiry follows each HSET, so that a late writer leaves no key for ever after a
    collection.
    """
    if len(ids) == 0:
        return
    bucket = buckets_of(ids, buckets)
    order = _order(bucket)
    bucket = bucket[order]
    starts = np.flatnonzero(np.append(True, bucket[1:] != bucket[:-1]))
    counts = np.diff(np.append(starts, len(bucket)))
    heads, tails = _around(bucket[starts], counts, bucket_prefix, deadline)
    parts = pa.concat_arrays([_encode_pairs(stored_ids(ids), rows), heads, tails])
    stream = parts.take(pa.array(_layout(order, starts, counts)))
    yield from _pieces(stream, starts, counts, piece_bytes)


def encode_lengths(keys: Iterable[str]) -> bytes:
    """Return one HLEN for each key."""
    return b"".join(b"*2\r\n$4\r\nHLEN\r\n$%d\r\n%b\r\n" % (len(key), key.encode()) for key in keys)


def _order(bucket: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    """Return the rows in the order of their buckets. Rows of one bucket keep their order.

    numpy sorts 16-bit integers by radix, in linear time: for 250 000 rows, 16-bit halves take 7 ns a row, 32 bits 18.
    """
    by_low = np.argsort(bucket.astype(np.uint16), kind="stable")
    high = (bucket >> 16).astype(np.uint16)
    return by_low[np.argsort(high[by_low], kind="stable")] if high.any() else by_low


def _around(hit: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64], prefix: str, deadline: int) -> tuple[Any, Any]:
    """Return the bytes before and after each bucket's pairs."""
    numbers = pc.cast(pc.cast(pa.array(hit), pa.string()), pa.large_binary())
    keys = _join(_scalar(prefix.encode()), numbers)
    key = _join(_length_lines(keys), keys, _scalar(b"\r\n"))
    heads = _join(_lines(b"*%d\r\n$4\r\nHSET\r\n", pa.array(2 + 2 * counts)), key)
    text = b"%d" % deadline
    tails = _join(_scalar(b"*3\r\n$8\r\nEXPIREAT\r\n"), key, _scalar(b"$%d\r\n%b\r\n" % (len(text), text)))
    return heads, tails


def _layout(
    order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the order of the stream's parts: per bucket its head, its pairs, its tail."""
    rows, hit = len(order), len(starts)
    before = np.arange(hit) * 2
    layout = np.empty(rows + 2 * hit, np.int64)
    layout[starts + before] = rows + np.arange(hit)
    layout[starts + counts + before + 1] = rows + hit + np.arange(hit)
    layout[np.arange(rows) + np.repeat(before, counts) + 1] = order
    return layout


def _pieces(
    stream: Any, starts: npt.NDArray[np.intp], counts: npt.NDArray[np.int64], piece_bytes: Callable[[], int]
) -> Iterator[BulkCommands]:
    """Cut the stream into pieces, between buckets."""
    offsets = np.frombuffer(stream.buffers()[1], np.int64)
    data = memoryview(stream.buffers()[2])
    ends = offsets[starts + counts + 2 * np.arange(1, len(starts) + 1)]
    first, begin = 0, 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, begin + piece_bytes())), len(ends) - 1)
        end = int(ends[last])
        yield BulkCommands(data[begin:end], 2 * (last + 1 - first))
        first, begin = last + 1, end


def _encode_pairs(fields: Any, rows: Any) -> Any:
    """Return each field and row as two RESP bulk strings in one binary value."""
    end = _scalar(b"\r\n")
    return _join(_length_lines(fields), fields, end, _length_lines(rows), rows, end)


def _length_lines(values: Any) -> Any:
    """Return the line that announces each value's length: `$13` and CR LF."""
    return _lines(b"$%d\r\n", pc.binary_length(values))


def _lines(form: bytes, numbers: Any) -> Any:
    """Return the form with each number filled in; a scalar if they are all the same."""
    bounds = pc.min_max(numbers)
    if bounds["min"] == bounds["max"]:
        return _scalar(form % bounds["min"].as_py())
    distinct = numbers.dictionary_encode()
    lines = [form % number for number in distinct.dictionary.to_pylist()]
    return pa.array(lines, pa.large_binary()).take(distinct.indices)


def _join(*parts: Any) -> Any:
    return pc.binary_join_element_wise(*parts, _scalar(b""))


def _scalar(value: bytes) -> Any:
    return pa.scalar(value, pa.large_binary())
