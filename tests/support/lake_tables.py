"""Delta and Iceberg tables with what other writers put into them: deletion vectors, position and equality deletes."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from tests.support.lazy_imports import LazyModule

catalogs = LazyModule("pyiceberg.catalog.sql")
manifest = LazyModule("pyiceberg.manifest")
typedef = LazyModule("pyiceberg.typedef")

#: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vector-format
_DELTA_MAGIC = 1681511377
#: of https://iceberg.apache.org/spec/#position-delete-files
_PATH_ID, _POSITION_ID = "2147483546", "2147483545"


def delete_by_vector(folder: Path, rows: list[int]) -> None:
    """Delete rows of a Delta table with one data file, as Spark and Databricks do: its log names them."""
    log = folder / "_delta_log"
    entries = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    added: dict[str, Any] = next(one["add"] for one in entries if "add" in one)
    bitmap = BitMap(rows).serialize()
    content = struct.pack("<iqi", _DELTA_MAGIC, 1, 0) + bitmap
    content += b"\0" * (-len(content) % 4)
    vector = {
        "storageType": "i",
        "pathOrInlineDv": base64.b85encode(content).decode().translate(_Z85),
        "sizeInBytes": len(content),
        "cardinality": len(rows),
    }
    removed = {"path": added["path"], "dataChange": True, "deletionTimestamp": added["modificationTime"]}
    actions = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"],
                      "writerFeatures": ["deletionVectors"]}},
        {"remove": removed},
        {"add": {**added, "deletionVector": vector}},
    ]  # fmt: skip
    (log / f"{1:020}.json").write_text("\n".join(map(json.dumps, actions)))


#: Python's base85 has the digits in another order
_Z85 = str.maketrans(
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~",
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#",
)


def new_catalog(folder: Path) -> Any:
    """Return a catalog of Iceberg tables in a new folder, with the namespace `lake`."""
    folder.mkdir()
    catalog = catalogs.SqlCatalog("test", **catalog_properties(folder))
    catalog.create_namespace("lake")
    return catalog


def catalog_properties(folder: Path) -> dict[str, str]:
    """Return what opens a catalog, as pyiceberg's configuration has it."""
    return {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}


def delete_by_position(table: Any, position: int) -> None:
    """Delete a row of an Iceberg table with one data file, as Spark and Trino do."""
    [task] = table.scan().plan_files()
    schema = pa.schema([
        pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": _PATH_ID}),
        pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": _POSITION_ID}),
    ])  # fmt: skip
    rows = pa.table({"file_path": [task.file.file_path], "pos": [position]}, schema=schema)
    _add_deletes(table, manifest.DataFileContent.POSITION_DELETES, rows)


def delete_by_value(table: Any, column: str, value: str) -> None:
    """Delete rows of an Iceberg table by the value of its first column, as Flink does."""
    _add_deletes(table, manifest.DataFileContent.EQUALITY_DELETES, pa.table({column: [value]}), equality_ids=[1])


def _add_deletes(table: Any, content: Any, rows: pa.Table, equality_ids: list[int] | None = None) -> None:
    path = Path(table.location().removeprefix("file://")) / f"{content.name.lower()}.parquet"
    pq.write_table(rows, path)
    counts = "column_sizes value_counts null_value_counts nan_value_counts lower_bounds upper_bounds"
    sizes: dict[str, Any] = {name: {} for name in counts.split()}
    file = manifest.DataFile.from_args(
        content=content, file_path=f"file://{path}", file_format=manifest.FileFormat.PARQUET,
        partition=typedef.Record(),
        record_count=rows.num_rows, file_size_in_bytes=path.stat().st_size, key_metadata=None, split_offsets=[],
        spec_id=0, sort_order_id=None, equality_ids=equality_ids, **sizes,
    )  # fmt: skip
    file.spec_id = 0
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as appended:
        appended.append_data_file(file)
