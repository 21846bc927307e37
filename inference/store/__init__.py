"""One versioned table in Redis, for predictions and for features: generations written by runs, and an overlay.

A run fills a generation that nobody reads, and publishing it flips one pointer. Real-time answers go to the overlay,
one key an id; a look-up takes the newer of the two. `layout` and `codec` say what stands in Redis, `reading` how it is
read.
"""

from inference.store.generations import SWEEP_AFTER_S
from inference.store.reading import AsyncTableReader
from inference.store.records import ChangeableRows, Entry, GenerationState, Manifest, Origin, Pointer, StoredRows
from inference.store.table import Table
from inference.store.versions import CANARY, STABLE, Labels

__all__ = [
    "CANARY",
    "STABLE",
    "SWEEP_AFTER_S",
    "AsyncTableReader",
    "ChangeableRows",
    "Entry",
    "GenerationState",
    "Labels",
    "Manifest",
    "Origin",
    "Pointer",
    "StoredRows",
    "Table",
]
