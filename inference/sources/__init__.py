"""Tables of features: Parquet files, folders, patterns and partitions, on this machine or in an object store.

`open_source` reads footers only. `read_slices` streams the rows of a plan, and notices a replaced file.
"""

from inference.sources.column_types import concat_rows, plain_column
from inference.sources.files import check_path, fixed_part, list_files
from inference.sources.footers import SourceFile, flat_columns, newest_instants
from inference.sources.reading import (
    IdCount,
    Slice,
    count_distinct_ids,
    hash_ids,
    hash_parts,
    pack_mask,
    read_ids,
    read_slices,
    repeated_hashes,
    unpack_mask,
    whole_slices,
)
from inference.sources.source import (
    Source,
    column_problem,
    column_type_name,
    find_column,
    open_source,
)

__all__ = [
    "IdCount",
    "Slice",
    "Source",
    "SourceFile",
    "check_path",
    "column_problem",
    "column_type_name",
    "concat_rows",
    "count_distinct_ids",
    "find_column",
    "fixed_part",
    "flat_columns",
    "hash_ids",
    "hash_parts",
    "list_files",
    "newest_instants",
    "open_source",
    "pack_mask",
    "plain_column",
    "read_ids",
    "read_slices",
    "repeated_hashes",
    "unpack_mask",
    "whole_slices",
]
