"""Tables of features: Parquet files, folders and patterns of them, Delta, Iceberg, CSV; here or in an object store.

`pin_source` opens each of them for a run, and `open_any` for this process alone. `open_source` reads only the footers
of Parquet files. `read_slices` streams the rows of a plan, and notices a replaced file.
"""

from inference.sources.column_types import concat_rows, plain_column
from inference.sources.files import TableName, check_path, fixed_part, list_files
from inference.sources.footers import SourceFile, flat_columns, newest_instants
from inference.sources.named_tables import folder_of
from inference.sources.pinning import absolute_source, is_plain, open_any, pin_source, state_of
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
from inference.sources.table_changes import NoChangeFeed, written_since

__all__ = [
    "IdCount",
    "NoChangeFeed",
    "Slice",
    "Source",
    "SourceFile",
    "TableName",
    "absolute_source",
    "check_path",
    "column_problem",
    "column_type_name",
    "concat_rows",
    "count_distinct_ids",
    "find_column",
    "fixed_part",
    "flat_columns",
    "folder_of",
    "hash_ids",
    "hash_parts",
    "is_plain",
    "list_files",
    "newest_instants",
    "open_any",
    "open_source",
    "pack_mask",
    "pin_source",
    "plain_column",
    "read_ids",
    "read_slices",
    "repeated_hashes",
    "state_of",
    "unpack_mask",
    "whole_slices",
    "written_since",
]
