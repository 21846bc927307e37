"""Where a chunk's predictions go. A sink takes windows and commits when the chunk is whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.schema import Block


@dataclass(frozen=True)
class Window:
    """Scored rows that are written together. `as_of`: epoch seconds; `features`: what they were scored from.

    `features` is None unless the run has a sink for them.
    """

    ids: pa.StringArray
    block: Block
    as_of: npt.NDArray[np.float64]
    features: Block | None = None

    @property
    def of_features(self) -> Window:
        """The same rows with their features in the place of the predictions.

        Raises:
            ValueError: the features were not kept.
        """
        if self.features is None:
            raise ValueError("the window was gathered without features")
        return Window(self.ids, self.features, self.as_of)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The predictions and, where they are kept, the features."""
        return (self.block,) if self.features is None else (self.block, self.features)


class Sink(Protocol):
    """One destination of one chunk. Every call may be repeated with the same rows, and does no harm then."""

    def write(self, window: Window) -> None:
        """Take rows."""

    def commit(self) -> None:
        """Make the chunk's rows final; called once they are all written."""

    def abandon(self) -> None:
        """Remove what is not final; called instead of `commit`, or after it, when it does nothing."""
