"""Tables of features: Parquet files, folders, patterns, partitions, here or in an object store.

`open_source` reads footers only; `read_slices` streams the rows that a plan names and notices a replaced file.
"""

from inference.sources.files import fixed_part, list_files
from inference.sources.footers import SourceFile
from inference.sources.ids import IdCount, count_distinct_ids, hash_ids, read_ids
from inference.sources.reading import Slice, pack_mask, read_slices, whole_slices
from inference.sources.source import Source, open_source

__all__ = [
    "IdCount",
    "Slice",
    "Source",
    "SourceFile",
    "count_distinct_ids",
    "fixed_part",
    "hash_ids",
    "list_files",
    "open_source",
    "pack_mask",
    "read_ids",
    "read_slices",
    "whole_slices",
]
