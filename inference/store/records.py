"""What a table is made of: generations and their manifests, the pointer, entries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat

from inference.schema import Block, TensorSpec
from inference.store.versions import Labels
from inference.stored_data import DATA_FORMAT, record_from_json, unknown_format

#: of four thousand million ids; a manifest with more is none of ours, and collecting it would take for ever
MOST_BUCKETS = 1 << 26


class GenerationState(StrEnum):
    """The life of a generation. A generation that is gone has no state: its keys do not exist."""

    #: being written; nobody reads it
    LOADING = "loading"
    #: published and served
    CURRENT = "current"
    #: published before the current one; kept for rollback and as a fallback
    PREVIOUS = "previous"
    #: superseded or rolled back: its rows are being removed, for good
    COLLECTING = "collecting"
    #: its run failed; never served
    FAILED = "failed"
    #: its run was cancelled; never served
    CANCELLED = "cancelled"


class Origin(StrEnum):
    """Who computed an entry. Staleness is judged by the age limit of the entry's origin."""

    #: a run
    BATCH = "batch"
    #: a real-time worker, after a miss
    REALTIME = "realtime"
    #: a single value written by a program
    UPSERT = "upsert"


@dataclass(frozen=True)
class Manifest:
    """All that is needed to decode a generation.

    Instants are epoch seconds by Redis' clock; at `deadline` Redis forgets the rows. `model_version` is 0 for
    features. `run_id` is None for a generation that no run wrote.
    """

    number: int
    fields: tuple[TensorSpec, ...]
    buckets: Annotated[int, Field(ge=1, le=MOST_BUCKETS)]
    model_version: int
    contract_hash: str
    run_id: str | None
    created_at: FiniteFloat
    deadline: FiniteFloat
    rows_expected: int
    #: that of the release which began it
    format: int = DATA_FORMAT

    def check_format(self) -> None:
        """Refuse to read or write rows of a form that is not known here.

        Raises:
            UnknownFormat: another release began the generation.
        """
        if self.format != DATA_FORMAT:
            raise unknown_format(f"generation {self.number}", self.format)

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps({**vars(self), "fields": [spec.to_json() for spec in self.fields]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Rebuild from `to_json`, of another release too: what it added is left out.

        Raises:
            Unreadable: it is no manifest.
        """
        return record_from_json(cls, text, "a generation's manifest")


@dataclass(frozen=True)
class Pointer:
    """What a table serves: generation numbers and model versions; None where there is none yet.

    `held_versions` are those that were rolled back: they are not activated again until someone insists. `labels`:
    names of versions, and what share of the entities the one on trial has.
    `incarnation` changes when the table was lost and built anew, so that cached manifests are not trusted.
    """

    current: int | None = None
    previous: int | None = None
    active_version: int | None = None
    held_versions: frozenset[int] = frozenset()
    labels: Labels = field(default_factory=Labels)
    incarnation: str = field(default="", compare=False, repr=False)


class Entry(NamedTuple):
    """One stored row, decoded. `generation` is None for an overlay entry.

    `values`: field name → number, text, or nested lists of them. `as_of` is epoch seconds, whole (rounded
    down); `computed_at` is epoch seconds: for a generation's row, when the generation was begun.
    `retried_at`: when the row was last computed on demand, from features no newer than its own; None if never.
    `outdated`: features of the entity were changed that are newer than the row.
    """

    values: dict[str, Any]
    as_of: float
    computed_at: float
    model_version: int
    origin: Origin
    generation: int | None
    retried_at: float | None = None
    outdated: bool = False


@dataclass(frozen=True)
class StoredRows:
    """Many rows as arrays, in the order asked for.

    Rows not found hold zeros, False and "" (and an `as_of` of 0). A field of unknown shape is an object
    column of one array a row.
    """

    block: Block
    found: npt.NDArray[np.bool_]
    as_of: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChangeableRows:
    """Rows as they were when they were read for a change.

    `known_at`: by which rows of one `as_of` are told apart, epoch seconds; for a change, its exact event time.
    `fields` are those of the rows; `is_loaded`: they are a generation's, and no other is read beside it. `overlay`:
    what the rows' overlay entries were, for `Overlay.replace` to compare.
    """

    rows: StoredRows
    fields: tuple[TensorSpec, ...]
    is_loaded: bool
    known_at: npt.NDArray[np.float64]
    overlay: tuple[bytes | None, ...]
