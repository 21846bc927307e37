"""Stores predictions and features in versioned tables in Redis: generations written by runs, and an overlay.

A run fills a generation that nobody reads; publishing it flips one pointer. Real-time answers go to the overlay,
one key an id. A look-up takes the newer of the two. `codec` and `wire` define the bytes in Redis, `reading` the
look-ups.
"""

from inference.store.codec import bucket_count, bucket_hashes, stored_as_of, stored_id, stored_ids
from inference.store.forgotten import NOBODY, ForgottenEntity, ForgottenIds, ForgottenList
from inference.store.generations import SWEEP_AFTER_S
from inference.store.reading import AsyncTableReader
from inference.store.records import (
    GENERATION_FORMAT,
    ChangeableRows,
    Entry,
    GenerationState,
    Manifest,
    Origin,
    Pointer,
    StoredRows,
)
from inference.store.scanning import StoredBatch
from inference.store.table import Table
from inference.store.versions import CANARY, STABLE, Labels

__all__ = [
    "CANARY",
    "GENERATION_FORMAT",
    "NOBODY",
    "STABLE",
    "SWEEP_AFTER_S",
    "AsyncTableReader",
    "ChangeableRows",
    "Entry",
    "ForgottenEntity",
    "ForgottenIds",
    "ForgottenList",
    "GenerationState",
    "Labels",
    "Manifest",
    "Origin",
    "Pointer",
    "StoredBatch",
    "StoredRows",
    "Table",
    "bucket_count",
    "bucket_hashes",
    "stored_as_of",
    "stored_id",
    "stored_ids",
]
