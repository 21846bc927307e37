"""Scored rows gathered into windows: what is written together, whatever the micro-batch was."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.batch.sinks import Window
from inference.schema import Block

#: rows written together: larger windows put more fields into each HSET, smaller ones start Redis earlier
WINDOW_ROWS = 250_000
#: a window of wide rows is written earlier; some four windows are in memory at once
WINDOW_BYTES = 64 << 20
#: this part of a window is written already when nothing else is to be written: at a chunk's start, and as long as the
#: sinks are faster than the model
_EARLY = 4


class WindowBuilder:
    """Scored rows that wait for their window to fill."""

    def __init__(self) -> None:
        self._parts: list[Window] = []
        self._bytes = 0
        self.rows = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to write."""
        return self.rows >= WINDOW_ROWS or self._bytes >= WINDOW_BYTES

    @property
    def is_worth_writing(self) -> bool:
        """Whether there is enough to write if the sinks have nothing else to do."""
        return self.rows * _EARLY >= WINDOW_ROWS or self._bytes * _EARLY >= WINDOW_BYTES

    def add(self, part: Window) -> None:
        """Take scored rows."""
        if len(part.ids):
            self._parts.append(part)
            self.rows += len(part.ids)
            self._bytes += sum(values.nbytes for block in part.blocks for values in block.values())

    def take(self) -> Window:
        """Return all rows as one window, and start anew; there must be some."""
        parts, self._parts, self.rows, self._bytes = self._parts, [], 0, 0
        if len(parts) == 1:
            return parts[0]
        ids = pa.concat_arrays([part.ids for part in parts])
        features = None if parts[0].features is None else _join([part.features or {} for part in parts])
        as_of = np.concatenate([part.as_of for part in parts])
        return Window(ids, _join([part.block for part in parts]), as_of, features)


def _join(blocks: list[Block]) -> Block:
    return {name: _join_column([block[name] for block in blocks]) for name in blocks[0]}


def _join_column(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if len({values.shape[1:] for values in columns}) == 1:
        return np.concatenate(columns)
    rows = [row for values in columns for row in values]  # an inner dimension that differs between micro-batches
    joined = np.empty(len(rows), dtype=object)
    joined[:] = rows
    return joined
