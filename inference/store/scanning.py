"""Reads whole generations by column: no Python runs for a row, and no row becomes an object.

A reply to HGETALL is a chain: each length leads to the next one. So the chains of thousands of buckets are followed at
once, one link of each at a time (20 million rows: 1 s; as objects, by hiredis, 10 s).
The protocol is RESP: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.errors import StoreUnavailable
from inference.redis.bulk import SeparatedReplies
from inference.redis.clients import Client
from inference.redis.pipes import Command
from inference.store.forgotten import ForgottenIds

#: buckets of a piece: half a millisecond of Redis, as `PIECE_S`
_PIECE_BUCKETS = 64
#: buckets whose chains are followed together, of about 64 rows each
_BATCH_BUCKETS = 2048
_SEPARATOR_BYTES = 12
_CR, _ZERO = b"\r0"
#: a hash comes as a map of pairs, or as a list of twice as many items to a connection that speaks RESP 2
_MAP, _LIST = b"%*"
_END = 2
_COLUMNS = 4
_NO_ROWS = "Redis refuses a command: its answer is no bucket of rows"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoredBatch:
    """The rows of some buckets, in no particular order, still packed.

    `data`: the bytes that Redis sent; the other arrays have an entry for each row: its bucket, and where its stored id
    and its packed value stand in `data`.
    """

    data: npt.NDArray[np.uint8]
    buckets: npt.NDArray[np.uint32]
    id_starts: Ints
    id_lengths: Ints
    starts: Ints
    lengths: Ints

    def __len__(self) -> int:
        return len(self.buckets)

    def without(self, forgotten: ForgottenIds) -> StoredBatch:
        """Return the rows of all other entities."""
        if not forgotten:
            return self
        spans = zip(self.id_starts.tolist(), self.id_lengths.tolist(), strict=True)
        ids = pa.array([self.data[start : start + length].tobytes() for start, length in spans], pa.large_binary())
        keep = ~forgotten.mask(ids)
        if keep.all():
            return self
        return StoredBatch(
            self.data,
            self.buckets[keep],
            self.id_starts[keep],
            self.id_lengths[keep],
            self.starts[keep],
            self.lengths[keep],
        )

    def fixed(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the part of fixed size of each value, as a structured array (`RowCodec.dtype`)."""
        if not len(self):
            return np.empty(0, dtype)
        return spans_of(self.data, self.starts, dtype.itemsize).view(dtype)

    def values(self) -> list[bytes]:
        """Return each packed value, one by one."""
        data = self.data.tobytes()
        bounds = zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        return [data[start : start + length] for start, length in bounds]


def spans_of(data: npt.NDArray[np.uint8], starts: Ints, size: int) -> npt.NDArray[np.void]:
    """Return the `size` bytes that start in `data` at each of `starts`, as a copy."""
    every = np.ndarray((len(data) - size + 1,), np.dtype((np.void, size)), data, strides=(1,))
    spans: npt.NDArray[np.void] = every[starts]
    return spans


def scan_buckets(
    client: Client,
    bucket_form: str,
    buckets: Iterable[int],
    size: int | None,
    give_way: Callable[[], None] = lambda: None,
) -> Iterator[StoredBatch]:
    """Yield the rows of buckets; `bucket_form % bucket` is a key. `size`: the bytes of each value; None: any.

    Calls `give_way` before each piece, which takes Redis half a millisecond.

    Raises:
        StoreUnavailable: Redis does not answer, or refuses.
    """
    numbers = list(buckets)
    separator = secrets.token_hex(_SEPARATOR_BYTES).encode()
    pieces = (
        _commands(bucket_form, numbers[at : at + _PIECE_BUCKETS], give_way)
        for at in range(0, len(numbers), _PIECE_BUCKETS)
    )
    replies: list[SeparatedReplies] = []
    first = 0
    for one in client.read_in_bulk(pieces, separator):
        replies.append(one)
        if len(replies) * _PIECE_BUCKETS >= _BATCH_BUCKETS:
            yield _parse(replies, numbers, first, len(separator), size)
            first, replies = first + sum(len(each.ends) for each in replies), []
    if replies:
        yield _parse(replies, numbers, first, len(separator), size)


def _commands(bucket_form: str, buckets: list[int], give_way: Callable[[], None]) -> list[Command]:
    give_way()
    return [("HGETALL", bucket_form % bucket) for bucket in buckets]


def _parse(
    replies: list[SeparatedReplies], numbers: list[int], first: int, separator: int, size: int | None
) -> StoredBatch:
    """Follow the chains of all replies."""
    data = np.frombuffer(b"".join(one.data for one in replies) + bytes(_END), np.uint8)
    shifts = np.cumsum([0, *(len(one.data) for one in replies[:-1])])
    stops = np.concatenate([np.array(one.ends, np.int64) + shift for one, shift in zip(replies, shifts, strict=True)])
    begins = np.append(0, stops[:-1] + len(b"$%d\r\n" % separator) + separator + _END)
    signs = data[begins]
    if ((signs != _MAP) & (signs != _LIST)).any():
        raise StoreUnavailable(_NO_ROWS)
    counts, at = _numbers_at(data, begins)
    counts = np.where(signs == _LIST, counts // 2, counts)
    order = np.argsort(-counts, kind="stable")
    at = at[order]
    whole = np.array(numbers[first : first + len(stops)], np.uint32)[order]
    active = _active(counts[order])
    try:
        links = [_link(data, at[:live], size) for live in active]
    except IndexError as error:
        raise StoreUnavailable(_NO_ROWS) from error
    if (at != stops[order]).any():
        raise StoreUnavailable(_NO_ROWS)
    nothing = np.empty(0, np.int64)
    columns = [np.concatenate([nothing, *(link[at] for link in links)]) for at in range(_COLUMNS)]
    buckets = np.concatenate([nothing.astype(np.uint32), *(whole[:live] for live in active)])
    return StoredBatch(data, buckets, *columns)


def _active(counts: Ints) -> list[int]:
    """Return how many of the buckets have a first row, a second one, and so on; `counts` falls."""
    most = int(counts[0]) if len(counts) else 0
    numbers: list[int] = np.searchsorted(-counts, -np.arange(most), side="left").tolist()
    return numbers


def _link(data: npt.NDArray[np.uint8], at: Ints, size: int | None) -> tuple[Ints, Ints, Ints, Ints]:
    """Read one id and one value of each bucket, and move `at`, in place, to the next. The end of the chains is checked.

    `size`: of each value; None: any.
    """
    tens, ones = data[at + 1].astype(np.int64) - _ZERO, data[at + 2]
    has_two = ones != _CR  # a stored id has at most 60 bytes
    id_lengths = np.where(has_two, tens * 10 + ones - _ZERO, tens)
    id_starts = at + (_END + 2)
    id_starts += has_two
    after = id_starts + id_lengths
    after += _END
    if size is None:
        lengths, starts = _numbers_at(data, after)
    else:
        starts = after + len(b"$%d\r\n" % size)
        lengths = np.broadcast_to(np.int64(size), starts.shape)
    np.add(starts, lengths + _END, out=at)
    return id_starts, id_lengths, starts, lengths


def _numbers_at(data: npt.NDArray[np.uint8], at: Ints) -> tuple[Ints, Ints]:
    """Read lines of a sign and a number; return the numbers, and where the next lines start."""
    at = at + 1
    number = data[at].astype(np.int64) - _ZERO
    at += 1
    while (more := (digit := data[at]) != _CR).any():
        number = np.where(more, number * 10 + digit - _ZERO, number)
        at += more
    return number, at + _END
