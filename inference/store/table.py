"""The contract of a versioned table; `tests/contract/test_tables.py` holds every implementation to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inference.schema import Block, TensorSpec
from inference.store.records import ChangeableRows, Entry, GenerationState, Manifest, Origin, Pointer, StoredRows

#: seconds between the two sweeps of collection: longer than a straggling writer holds one window
SWEEP_AFTER_S = 900.0


class Table(Protocol):
    """Generations, of which one is current, and an overlay of single entries that are newer.

    Every method raises StoreUnavailable when the store does not answer: an outage is never a miss. Ids are
    legal entity ids; `as_of` values are epoch seconds, kept as whole seconds, rounded down.
    """

    def now(self) -> float:
        """Return the store's time in epoch seconds, by which all writers and readers agree."""

    # --- generations -------------------------------------------------------------------------------

    def begin(
        self,
        fields: Sequence[TensorSpec],
        *,
        rows_expected: int,
        model_version: int,
        contract_hash: str,
        keep_s: float,
        run_id: str | None = None,
    ) -> Manifest:
        """Open a new generation, loading, whose rows are forgotten after `keep_s` seconds."""

    def write(self, manifest: Manifest, ids: Any, block: Block, as_of: npt.NDArray[np.float64]) -> None:
        """Store rows in a generation; may run twice.

        Windows of some 250 000 rows are fastest. `ids`: an Arrow text array without nulls; `as_of` is
        clamped to the generation's `created_at`. Of rows with one id, the last one stays.

        Raises:
            UnknownFormat: a release whose form of data is not known here began the generation.
        """

    def count(self, manifest: Manifest) -> int:
        """Return how many distinct ids a generation holds, counted in the store."""

    def manifest(self, number: int) -> Manifest | None:
        """Return a generation's manifest, or None when it is gone."""

    def state(self, number: int) -> GenerationState | None:
        """Return a generation's state, or None when it is gone."""

    def generations(self) -> list[Manifest]:
        """Return the manifests of all generations that are not gone, oldest first."""

    def publish(self, number: int, *, run_key: str | None = None, run_state: str | None = None) -> Pointer:
        """Make a generation current in one step, and the current one previous; may run twice.

        With `run_key`, only if that run record's `state` is `run_state`. The generation that was previous
        can be collected from then on.

        Raises:
            Conflict: it is not loading (nor current already), or the run is in another state.
            NotFound: it is gone.
        """

    def move_to_overlay(self, number: int, *, keep_s: float) -> None:
        """Make a loading generation's rows overlay entries, each forgotten after `keep_s` seconds; may run twice.

        An overlay entry that is newer stays: the rows count as computed when the generation was begun. Readers see
        them one after the other. Once all are moved, the generation can be collected.

        Raises:
            Conflict: it is neither loading nor moved already.
            NotFound: it is gone.
        """

    def discard(self, number: int, state: GenerationState) -> None:
        """Mark a generation FAILED or CANCELLED, never to be served; one that is gone is left gone.

        Raises:
            Conflict: it is current or previous.
        """

    def rollback(self, expected_current: int) -> Pointer:
        """Go back to the previous generation and its model version, in one step.

        The versions left behind are held: neither activated again nor read from the overlay. The label `stable`, if
        there is one, goes along.

        Raises:
            Conflict: `expected_current` is not current, or there is no previous generation.
        """

    def collectable(self) -> list[int]:
        """Return the generations that can be removed now: not current, previous or loading."""

    def collect(
        self,
        number: int,
        *,
        pause_s: float = 0.01,
        buckets_per_batch: int = 500,
        sweep_after_s: float = SWEEP_AFTER_S,
    ) -> int:
        """Remove a generation's rows and return how many keys went; may run twice.

        The first call starts its removal, from which there is no way back, and leaves the manifest. A call
        `sweep_after_s` later removes what a straggler wrote, and then the manifest; 0 does both at once.
        `pause_s` is the rest after each batch of `buckets_per_batch` keys.

        Raises:
            Conflict: it is current, previous or loading.
        """

    # --- pointer -----------------------------------------------------------------------------------

    def pointer(self) -> Pointer:
        """Return what is served now."""

    def activate(self, version: int, *, force: bool = False) -> bool:
        """Make a model version the active one, and say whether it is.

        Refused for a version that is held, or another than the one labelled `stable`; where none is, for one that is
        older than the active one or labelled `canary`. `force` insists: it ends a hold and a trial, and takes the
        label `stable` along.
        """

    def label(self, name: str, version: int | None, *, share: float = 0.0) -> None:
        """Give a label to a version in place of the one that has it, or take it away (None).

        `share`: of the entities, 0 to 1, whose overlay entries of that version are read; of the label `canary` only.
        Labelling a version `stable` ends its hold and its trial; activating it is left to the workers.
        """

    # --- reading -----------------------------------------------------------------------------------

    def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return each id's newest entry by (`as_of`, `computed_at`), or None on a miss.

        Overlay entries of a model version other than the active one are ignored, but for those of the canary of
        entities on its side.
        """

    def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry in one generation, such as the previous; None where it has none."""

    def read_block(self, ids: Sequence[str]) -> StoredRows | None:
        """Return each id's newest row as arrays, or None when nothing was ever stored.

        The fields are the current generation's. An overlay entry with other fields is left out.
        """

    # --- parts ---------------------------------------------------------------------------------------

    def part(self, name: str) -> Table:
        """Return the overlay of a part of the rows, such as one group of features: a table without generations.

        Its entries have fields of their own, and stand beside the rows of this table; which of them is the newer one
        is for the reader to say.
        """

    def read_blocks(self, ids: Sequence[str], parts: Sequence[str]) -> list[StoredRows | None]:
        """Return what `read_block` does, of this table and then of each part, read at once."""

    # --- overlay -----------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Sequence[str],
        fields: Sequence[TensorSpec],
        block: Block,
        *,
        as_of: npt.NDArray[np.float64],
        computed_at: float,
        model_version: int,
        origin: Origin,
        keep_s: float,
    ) -> None:
        """Store single entries, each forgotten after `keep_s` seconds; may run twice.

        Never overwrites an entry of the same model version with a newer (`as_of`, `computed_at`).
        `model_version` is 0 for features.
        """

    # --- changes of features -----------------------------------------------------------------------

    def read_for_change(self, ids: Sequence[str]) -> ChangeableRows | None:
        """Return each id's newest row as `read_block` does, with what `replace` needs; None when nothing is stored."""

    def replace(
        self,
        ids: Sequence[str],
        fields: Sequence[TensorSpec],
        block: Block,
        *,
        known_at: npt.NDArray[np.float64],
        expected: Sequence[bytes | None],
        keep_s: float,
    ) -> list[bool]:
        """Store rows of features, each only if its overlay entry still is what was `expected`; tell of which it was.

        `known_at`: the rows' event times, whose whole seconds are their `as_of`.
        """

    def outdate(self, ids: Sequence[str], *, changed_at: npt.NDArray[np.float64], keep_s: float) -> None:
        """Note in a table of predictions that features of the ids, with event times `changed_at`, have just changed.

        From then on what was computed on demand before is gone, and stays so if a worker stores it late; what a run
        computed is `outdated` if it may be older: rows know their age to the whole second, so one of the second in
        which a change falls is. The note goes with the next answer computed on demand, or after `keep_s` seconds.
        """
