"""Tables as sinks: rows land in a generation that nobody reads until it is published."""

from __future__ import annotations

from dataclasses import dataclass

from inference.batch.sinks import Window
from inference.store import Manifest, Table


@dataclass(frozen=True)
class TableSink:
    """Writes windows into one generation; its rows are final as they land."""

    table: Table
    manifest: Manifest

    def write(self, window: Window) -> None:
        """Take rows; the same row twice is the same row."""
        self.table.generations.write(self.manifest, window.ids, window.block, window.as_of)

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Nothing to remove: an unpublished generation is collected as a whole."""
