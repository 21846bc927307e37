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

from inference.redis.bulk import BulkCommands
from inference.store.codec import buckets_of, stored_ids

#: the number of the node that holds each bucket; None: one Redis holds all
Nodes = npt.NDArray[np.int16] | None


def encode_window(
    ids: Any,
    rows: Any,
    *,
    bucket_form: str,
    buckets: int,
    deadline: int,
    piece_bytes: Callable[[], int],
    nodes: Nodes = None,
) -> Iterator[BulkCommands]:
    """Yield each bucket's commands in pieces: HSET of its rows in the order of the ids, then EXPIREAT `deadline`.

    `ids`: Arrow text without nulls; `rows`: Arrow binary of the same length; `piece_bytes`: returns the approximate
    size of the next piece. The expiry follows each HSET, so that a late writer leaves no key for ever after a
    collection. `nodes`: the node of each bucket; each piece is for one node then.
    """
    if len(ids) == 0:
        return
    order, hit, starts, counts = _in_buckets(ids, buckets, nodes)
    heads, tails = _around(hit, counts, bucket_form, deadline)
    parts = pa.concat_arrays([_encode_pairs(stored_ids(ids), rows), heads, tails])
    stream = parts.take(pa.array(_layout(order, starts, counts, around=2)))
    of_nodes = None if nodes is None else nodes[hit]
    yield from _pieces(stream, starts, counts, piece_bytes, around=2, nodes=of_nodes)


def encode_ages(
    ids: Any,
    as_of: npt.NDArray[np.uint32],
    *,
    script: str,
    bucket_form: str,
    buckets: int,
    piece_bytes: Callable[[], int],
    nodes: Nodes = None,
) -> Iterator[BulkCommands]:
    """Yield, in pieces, a call of `scripts/set_ages.lua` (its digest: `script`) for each bucket of the ids.

    `as_of`: the new age of each row; the rest as in `encode_window`.
    """
    if len(ids) == 0:
        return
    order, hit, starts, counts = _in_buckets(ids, buckets, nodes)
    ages = np.ascontiguousarray(as_of[order])
    bounds = np.append(starts, len(ages)).astype(np.int64) * ages.itemsize
    of_buckets = pa.Array.from_buffers(pa.large_binary(), len(starts), [None, pa.py_buffer(bounds), pa.py_buffer(ages)])
    call = b"*%%d\r\n%b%b%b" % (_text(b"EVALSHA"), _text(script.encode()), _text(b"1"))
    heads = _join(_lines(call, pa.array(5 + counts)), _bulk(_keys(hit, bucket_form)), _bulk(of_buckets))
    parts = pa.concat_arrays([_bulk(stored_ids(ids)), heads])
    stream = parts.take(pa.array(_layout(order, starts, counts, around=1)))
    of_nodes = None if nodes is None else nodes[hit]
    yield from _pieces(stream, starts, counts, piece_bytes, around=1, nodes=of_nodes)


def encode_copies(bucket_forms: tuple[str, str], buckets: Iterable[int], *, deadline: int) -> bytes:
    """Return a COPY and an EXPIREAT for each bucket.

    `bucket_forms`: of the generation to copy from and of the copy.
    """
    copy, replace, expire = _text(b"COPY"), _text(b"REPLACE"), _text(b"EXPIREAT")
    at = _text(b"%d" % deadline)
    keys = ([_text((form % bucket).encode()) for form in bucket_forms] for bucket in buckets)
    return b"".join(b"*4\r\n%b%b%b%b*3\r\n%b%b%b" % (copy, old, new, replace, expire, new, at) for old, new in keys)


def encode_lengths(keys: Iterable[str]) -> bytes:
    """Return one HLEN for each key."""
    return b"".join(b"*2\r\n$4\r\nHLEN\r\n$%d\r\n%b\r\n" % (len(key), key.encode()) for key in keys)


def _in_buckets(
    ids: Any, buckets: int, nodes: Nodes
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32], npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return the rows in the order of `_order`, and of each bucket with rows: its number, its first row, its rows."""
    bucket = buckets_of(ids, buckets)
    order = _order(bucket, nodes)
    bucket = bucket[order]
    starts = np.flatnonzero(np.append(True, bucket[1:] != bucket[:-1]))
    return order, bucket[starts], starts, np.diff(np.append(starts, len(bucket)))


def _order(bucket: npt.NDArray[np.uint32], nodes: Nodes) -> npt.NDArray[np.intp]:
    """Return the rows in the order of their nodes, if there are several, then of their buckets.

    Rows of one bucket keep their order.

    numpy sorts 16-bit integers by radix, in linear time: for 250 000 rows, 16-bit halves take 7 ns a row, 32 bits 18.
    """
    by_low = np.argsort(bucket.astype(np.uint16), kind="stable")
    high = (bucket >> 16).astype(np.uint16)
    order = by_low[np.argsort(high[by_low], kind="stable")] if high.any() else by_low
    return order if nodes is None else order[np.argsort(nodes[bucket[order]], kind="stable")]


def _around(hit: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64], form: str, deadline: int) -> tuple[Any, Any]:
    """Return the bytes before and after each bucket's pairs."""
    key = _bulk(_keys(hit, form))
    heads = _join(_lines(b"*%d\r\n$4\r\nHSET\r\n", pa.array(2 + 2 * counts)), key)
    tails = _join(_scalar(b"*3\r\n$8\r\nEXPIREAT\r\n"), key, _scalar(_text(b"%d" % deadline)))
    return heads, tails


def _layout(
    order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp], counts: npt.NDArray[np.int64], *, around: int
) -> npt.NDArray[np.int64]:
    """Return the order of the stream's parts: per bucket its head, its rows and, if `around` is 2, its tail."""
    rows, hit = len(order), len(starts)
    before = np.arange(hit) * around
    layout = np.empty(rows + around * hit, np.int64)
    layout[starts + before] = rows + np.arange(hit)
    if around == 2:
        layout[starts + counts + before + 1] = rows + hit + np.arange(hit)
    layout[np.arange(rows) + np.repeat(before, counts) + 1] = order
    return layout


def _pieces(
    stream: Any,
    starts: npt.NDArray[np.intp],
    counts: npt.NDArray[np.int64],
    piece_bytes: Callable[[], int],
    *,
    around: int,
    nodes: Nodes,
) -> Iterator[BulkCommands]:
    """Cut the stream into pieces, between buckets. Each part around a bucket's rows brings one reply.

    `nodes`: the node of each bucket in the stream, in order.
    """
    offsets = np.frombuffer(stream.buffers()[1], np.int64)
    data = memoryview(stream.buffers()[2])
    ends = offsets[starts + counts + around * np.arange(1, len(starts) + 1)]
    first, begin = 0, 0
    while first < len(ends):
        node = 0 if nodes is None else int(nodes[first])
        after = len(ends) if nodes is None else int(np.searchsorted(nodes, node, side="right"))
        last = min(int(np.searchsorted(ends, begin + piece_bytes())), after - 1)
        end = int(ends[last])
        yield BulkCommands(data[begin:end], around * (last + 1 - first), node)
        first, begin = last + 1, end


def _keys(buckets: npt.NDArray[np.uint32], form: str) -> Any:
    """Return each bucket's key as Arrow binary."""
    before, after = form.split("%s")
    numbers = pc.cast(pc.cast(pa.array(buckets), pa.string()), pa.large_binary())
    return _join(_scalar(before.encode()), numbers, _scalar(after.encode()))


def _bulk(values: Any) -> Any:
    """Return each value as a RESP bulk string."""
    return _join(_length_lines(values), values, _scalar(b"\r\n"))


def _text(value: bytes) -> bytes:
    """Return a value as a RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


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
