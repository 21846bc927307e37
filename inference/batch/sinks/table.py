"""Tables as sinks: rows land in a generation that nobody reads until it is published."""

from __future__ import annotations

from dataclasses import dataclass

from inference.batch.sinks import Window
from inference.store import Manifest, Table


@dataclass(frozen=True)
class TableSink:
    """Writes windows into one generation; its rows are final as they land.

    `of_features`: the generation is one of the feature table, and takes what the rows were scored from.
    """

    table: Table
    manifest: Manifest
    of_features: bool = False

    def write(self, window: Window) -> None:
        """Take rows; the same row twice is the same row."""
        block = window.block
        if self.of_features:
            if window.features is None:
                raise ValueError("the window was gathered without features")
            block = window.features
        self.table.write(self.manifest, window.ids, block, window.as_of)

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Nothing to remove: an unpublished generation is collected as a whole."""
