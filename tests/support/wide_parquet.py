"""Parquet files that no library writes, or not fast enough for a test."""

from __future__ import annotations

from pathlib import Path


def write_wide(path: Path, columns: int) -> None:
    """A Parquet footer of so many columns, spelled in Thrift's compact protocol; no library writes it as fast."""
    root = b"\x48\x01r\x15" + _varint(2 * columns) + b"\x00"  # name "r", number of children
    leaf = b"\x15\x02\x25\x00\x18\x01c\x00"  # type int32, required, name "c"
    schema = b"\x19\xfc" + _varint(columns + 1) + root + leaf * columns
    footer = b"\x15\x02" + schema + b"\x16\x00\x19\x0c\x00"  # version 1, schema, no rows, no row groups
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def _varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head += bytes([number & 127 | 128])
        number >>= 7
    return head + bytes([number])
