"""One versioned table, for predictions and for features: generations written by runs, an overlay of single entries.

A run fills a generation that nobody reads, and publishing it flips one pointer. Real-time answers go to the
overlay; a look-up takes the newer of the two. `layout` and `codec` say what stands in Redis, `plans` how it is read.
"""

from inference.store.records import Entry, GenerationState, Manifest, Origin, Pointer, StoredRows
from inference.store.table import SWEEP_AFTER_S, Table

__all__ = [
    "SWEEP_AFTER_S",
    "Entry",
    "GenerationState",
    "Manifest",
    "Origin",
    "Pointer",
    "StoredRows",
    "Table",
]
