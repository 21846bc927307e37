"""Reads columns from folder names, as Hive and Spark write them: `date=2026-01-01/part-0.parquet`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from inference.errors import SourceError
from inference.stored_data import reading

#: the null of Hive and Spark
NULL = "__HIVE_DEFAULT_PARTITION__"

_SEGMENT = re.compile(r"([^=/]+)=([^/]*)")
#: the possible types of a column of folder names; the first one that fits all values is taken
_TYPES: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"-?\d{1,19}"), pa.int64()),
    (re.compile(r"true|false", re.IGNORECASE), pa.bool_()),
    (re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"), pa.float64()),
    (re.compile(r"\d{4}-\d{2}-\d{2}"), pa.date32()),
    (re.compile(r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?"), pa.timestamp("us")),
)


@dataclass(frozen=True)
class PartitionValue:
    """One column's value for all rows of a file. `text`: None for null. `type`: its name in Arrow."""

    column: str
    text: str | None
    type: str

    @property
    def scalar(self) -> Any:
        """The value as an Arrow scalar.

        Raises:
            Unreadable: the text does not fit the type, in a plan that another program wrote.
        """
        with reading("a file of a plan"):
            return pa.array([self.text], pa.string()).cast(self.arrow_type)[0]

    @property
    def arrow_type(self) -> pa.DataType:
        """The type as Arrow's object."""
        return pa.type_for_alias(self.type)


def partition_values(
    paths: Sequence[str], names: Sequence[str], as_text: Collection[str] = ()
) -> list[tuple[PartitionValue, ...]]:
    """Return each file's partition values. Infers a column's type from all files.

    The types are whole numbers, bools, numbers, dates, timestamps, else text. `names`: the paths for messages. The
    columns in `as_text` are always text: an id 007 is not 7.

    Raises:
        SourceError: the files have different partition columns.
    """
    found = [_segments(path) for path in paths]
    for columns, name in zip(found, names, strict=True):
        if list(columns) != list(found[0]):
            raise SourceError(
                f"{name} lies below {_shown(columns)}, but {names[0]} below {_shown(found[0])}: "
                "partition all files of a source by the same columns",
                field="source",
            )
    types = {
        column: "string" if column in as_text else _type([columns[column] for columns in found])
        for column in (found[0] if found else ())
    }
    return [tuple(PartitionValue(column, text, types[column]) for column, text in columns.items()) for columns in found]


def _segments(path: str) -> dict[str, str | None]:
    """Return the consecutive `key=value` folders around a file, outermost first."""
    columns: dict[str, str | None] = {}
    for folder in reversed(path.split("/")[:-1]):
        match = _SEGMENT.fullmatch(folder)
        if match is None:
            break
        value = unquote(match[2])
        columns[unquote(match[1])] = None if value == NULL else value
    return dict(reversed(columns.items()))


def _type(values: Sequence[str | None]) -> str:
    texts = {value for value in values if value is not None}
    for pattern, type_ in _TYPES:
        if texts and all(pattern.fullmatch(text) for text in texts) and _casts(texts, type_):
            return str(type_)
    return "string"


def _casts(texts: set[str], type_: Any) -> bool:
    try:
        pa.array(list(texts), pa.string()).cast(type_)
    except pa.ArrowInvalid:  # such as the 31st of February
        return False
    return True


def _shown(columns: dict[str, str | None]) -> str:
    return "/".join(f"{column}=…" for column in columns) or "no partition folder"
