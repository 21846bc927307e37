"""The overlay as a sink: each row is served as soon as it lands, until something newer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.batch.sinks import Window
from inference.schema import TensorSpec
from inference.store import Origin, Table


@dataclass(frozen=True)
class OverlaySink:
    """Writes windows as single entries that expire after `keep_s`; an entry that is newer stays."""

    table: Table
    fields: Sequence[TensorSpec]
    model_version: int
    keep_s: float

    def write(self, window: Window) -> None:
        """Take rows; the same row twice is the same row."""
        self.table.upsert(
            window.ids.to_pylist(),
            self.fields,
            window.block,
            as_of=window.as_of,
            computed_at=self.table.now(),
            model_version=self.model_version,
            origin=Origin.BATCH,
            keep_s=self.keep_s,
        )

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Nothing to remove: each row was right by itself, and expires."""
