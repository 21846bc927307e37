"""Defines the records of a table: states and manifests of generations, the pointer, entries."""

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
from inference.stored_data import FIRST_FORMAT, record_from_json, unknown_format

#: enough for four billion ids; a manifest with more is not ours, and collecting it would take for ever
MOST_BUCKETS = 1 << 26


#: format of new generations; since 2, the keys of buckets have hash tags. This release also knows the ones before
GENERATION_FORMAT = 2


class GenerationState(StrEnum):
    """The states of a generation. A generation that is gone has none: its keys do not exist."""

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
    """Who computed an entry. The origin decides which age limit applies."""

    #: a run
    BATCH = "batch"
    #: a real-time worker, after a miss
    REALTIME = "realtime"
    #: a single value written by a program
    UPSERT = "upsert"


@dataclass(frozen=True)
class Manifest:
    """Describes a generation, to decode it.

    Instants are epoch seconds by Redis' clock; at `deadline` Redis forgets the rows. `model_version` is 0 for
    features. `run_id` is None if no run wrote the generation.
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
    #: the format of the release that began it; older releases wrote none
    format: int = FIRST_FORMAT
    #: the `as_of` of all rows, whatever they hold; None: each has its own
    rows_as_of: int | None = None

    @property
    def is_tagged(self) -> bool:
        """Whether the keys of its buckets have hash tags."""
        return self.format > FIRST_FORMAT

    def check_format(self) -> None:
        """Refuse to read or write rows of an unknown format.

        Raises:
            UnknownFormat: another release began the generation.
        """
        if not FIRST_FORMAT <= self.format <= GENERATION_FORMAT:
            raise unknown_format(f"generation {self.number}", self.format, GENERATION_FORMAT)

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps({**vars(self), "fields": [spec.to_json() for spec in self.fields]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Rebuild from `to_json`. Ignores fields that another release added.

        Raises:
            Unreadable: it is no manifest.
        """
        return record_from_json(cls, text, "a generation's manifest")


@dataclass(frozen=True)
class Pointer:
    """The generations and model versions that a table serves; None where there is none yet.

    `held_versions` were rolled back; only force activates them again. `labels`: names of versions, and the share of the
    entities that the version on trial serves.
    `incarnation` changes if the table was lost and built anew, so that cached manifests are not trusted.
    """

    current: int | None = None
    previous: int | None = None
    active_version: int | None = None
    held_versions: frozenset[int] = frozenset()
    labels: Labels = field(default_factory=Labels)
    incarnation: str = field(default="", compare=False, repr=False)


class Entry(NamedTuple):
    """One stored row, decoded. `generation` is None for an overlay entry.

    `values`: field name → number, text, or nested lists of them. `as_of` is in whole epoch seconds (rounded
    down); `computed_at` is in epoch seconds: for a generation's row, the start of the generation.
    `retried_at`: when the row was last computed on demand, from features no newer than its own; None if never.
    `outdated`: the entity has newer features than the row. `row_as_of`: of an overlay entry, the `as_of` of the
    generation's row that it is newer than, unless features changed since that; None if there is none.
    """

    values: dict[str, Any]
    as_of: float
    computed_at: float
    model_version: int
    origin: Origin
    generation: int | None
    retried_at: float | None = None
    outdated: bool = False
    row_as_of: float | None = None


@dataclass(frozen=True)
class StoredRows:
    """Many rows as arrays, in the requested order.

    Rows not found hold zeros, False and "" (and an `as_of` of 0). A field of unknown shape is an object
    column with one array for each row.
    """

    block: Block
    found: npt.NDArray[np.bool_]
    as_of: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChangeableRows:
    """Rows that were read for a change.

    `known_at`: orders rows with the same `as_of`, epoch seconds; for a change, its exact event time.
    `fields`: of the rows; `is_loaded`: a generation defines them, and rows with other fields are left out. `overlay`:
    the rows' overlay entries, which `Overlay.replace` compares.
    """

    rows: StoredRows
    fields: tuple[TensorSpec, ...]
    is_loaded: bool
    known_at: npt.NDArray[np.float64]
    overlay: tuple[bytes | None, ...]
