"""One versioned table, for predictions and for features: generations written by runs, and an overlay.

A run fills a generation that nobody reads, and publishing it flips one pointer. Real-time answers go to the
overlay, one key an id; a look-up takes the newer of the two. `layout` and `codec` say what stands in Redis,
`plans` how it is read.
"""

from inference.store.async_pipe import AsyncPipe
from inference.store.async_reader import AsyncTableReader
from inference.store.bulk import Pace
from inference.store.labels import CANARY, STABLE, Labels
from inference.store.memory_table import MemoryTable
from inference.store.pipe import Pipe
from inference.store.records import ChangeableRows, Entry, GenerationState, Manifest, Origin, Pointer, StoredRows
from inference.store.redis_table import RedisTable
from inference.store.sizes import measured_row_bytes
from inference.store.table import SWEEP_AFTER_S, Table

__all__ = [
    "CANARY",
    "STABLE",
    "SWEEP_AFTER_S",
    "AsyncPipe",
    "AsyncTableReader",
    "ChangeableRows",
    "Entry",
    "GenerationState",
    "Labels",
    "Manifest",
    "MemoryTable",
    "Origin",
    "Pace",
    "Pipe",
    "Pointer",
    "RedisTable",
    "StoredRows",
    "Table",
    "measured_row_bytes",
]
