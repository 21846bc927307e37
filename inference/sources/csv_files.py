"""Reads tables in CSV as streams of rows, each column with one type.

Arrow infers the types from the first rows. A later value that does not fit widens the type of its column, and the table
is read again from the start: whole numbers become numbers, and anything becomes text. Columns of numbers that turn into
text say which value did it, to those who need numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from inference.errors import SourceError, cut
from inference.sources.files import list_files
from inference.sources.source import unreadable_field
from inference.storage import Location, open_location, reason_of

_DELIMITERS = ",;\t|"
#: bytes that are parsed at a time; the types are inferred from the first ones
_BLOCK_BYTES = 4 << 20
#: bytes of the first look: the names of the columns, and the types that Arrow would not infer
_HEAD_BYTES = 64 << 10
_MISFIT = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to .*: invalid value '(.*)'", re.DOTALL)
#: pandas' name for an index without one
_INDEX = "__index_level_0__"
_LEADING_ZERO = r"^[+-]?0\d"
#: the spellings of a missing number
_MISSING = frozenset(csv.ConvertOptions().null_values)


class TypesChanged(Exception):
    """A value does not fit the type of its column, which was widened: read the table again from the start."""


@dataclass
class CsvTable:
    """The tables in CSV at an absolute path, a pattern or a URI. `types`: known types, by column.

    Text is UTF-8. A comma, a semicolon, a tab or a bar separates the columns: what the first line has most of. Numbers
    with leading zeros are text.
    """

    path: str
    types: dict[str, pa.DataType]
    _problems: dict[str, str] = field(default_factory=dict)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in batches of one schema.

        Raises:
            SourceError: a file is missing, is no CSV in UTF-8, has other columns than the first one, or a row with more
                or fewer values than columns.
            TypesChanged: see there.
        """
        place = open_location(self.path)
        schema: pa.Schema | None = None
        for path in list_files(place):
            for batch in self._read(place.at(path)):
                if schema is None:
                    schema = self._noted(batch.schema)
                yield self._fitted(batch, schema, place.at(path))

    def _read(self, place: Location) -> Iterator[pa.RecordBatch]:
        names: list[str] = []
        try:
            with place.filesystem.open_input_stream(place.path) as stream:
                head = stream.read(_HEAD_BYTES)
            _check_head(head, place)
            delimiter = _delimiter(head)
            first = _first_rows(place, delimiter)
            names = _names(first.schema)
            for name, column in zip(names, first.columns, strict=True):
                if type_ := _type_at_first(column):
                    self.types.setdefault(name, type_)
            with place.filesystem.open_input_stream(place.path) as stream, _open(stream, delimiter, self.types) as rows:
                for name, type_ in zip(names, rows.schema.types, strict=True):
                    self.types.setdefault(name, type_)
                yield from (_read_as_named(batch, names) for batch in rows)
        except (pa.ArrowException, OSError) as error:
            misfit = _MISFIT.fullmatch(str(error))
            if misfit is None:
                raise SourceError(f"{place.name} is not readable as CSV: {_reason(error)}", field="source") from error
            self._widen(names[int(misfit[1])], misfit[3], f"{place.name}, row {int(misfit[2]):,}")
            raise TypesChanged from error

    def _widen(self, name: str, value: str, where: str) -> None:
        """Give a column the next type that holds the value too."""
        before = self.types[name]
        after = next(type_ for type_ in _wider(before) if _fits(value, type_))
        self.types[name] = after
        if pa.types.is_large_string(after) and not pa.types.is_null(before):
            self._problems[name] = (
                f"column {name!r} holds values of type {before}, but {where} has {cut(value)!r} (the header is row 1): "
                "correct that value, or leave it empty"
            )

    def _noted(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema(
            unreadable_field(one, self._problems[one.name]) if one.name in self._problems else one for one in schema
        )

    def _fitted(self, batch: pa.RecordBatch, schema: pa.Schema, place: Location) -> pa.RecordBatch:
        if batch.schema.names != schema.names:
            names = ", ".join(batch.schema.names)
            raise SourceError(f"{place.name} has other columns than the first file: {cut(names)}", field="source")
        return batch.cast(schema)


def _open(
    stream: Any, delimiter: str, types: Mapping[str, pa.DataType], *, block_bytes: int = _BLOCK_BYTES
) -> csv.CSVStreamingReader:
    return csv.open_csv(
        stream,
        # rows have no number in the errors of several threads
        read_options=csv.ReadOptions(block_size=block_bytes, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types={_name_in_file(name): types[name] for name in types}),
    )


def _check_head(head: bytes, place: Location) -> None:
    if head.startswith(b"PAR1"):
        name = PurePosixPath(place.path).name.partition(".")[0]
        message = f"{place.name} is Parquet and called CSV: rename it to {name}.parquet"
        raise SourceError(message, field="source")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{place.name} is text in UTF-16: write it in UTF-8", field="source")


def _names(schema: pa.Schema) -> list[str]:
    """Return the names of columns. A first one without a name is a DataFrame's index."""
    names: list[str] = schema.names
    return [_INDEX, *names[1:]] if names[:1] == [""] and _INDEX not in names else names


def _name_in_file(name: str) -> str:
    return "" if name == _INDEX else name


def _read_as_named(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Return a batch with these names of columns, and with null for empty text, which is missing like empty numbers."""
    columns = [_without_empty(column) for column in batch.columns]
    fields = [pa.field(name, column.type) for name, column in zip(names, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _without_empty(column: pa.Array) -> pa.Array:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    is_empty = pc.equal(column, "")
    return pc.if_else(is_empty, None, column) if pc.any(is_empty).as_py() else column


def _delimiter(head: bytes) -> str:
    line = head.split(b"\n", 1)[0].decode(errors="replace")
    unquoted = re.sub(r'"[^"]*"', "", line)
    return max(_DELIMITERS, key=unquoted.count)


def _first_rows(place: Location, delimiter: str) -> pa.RecordBatch:
    """Return the first rows as text. Arrow finds their end: a value may hold line breaks."""
    with place.filesystem.open_input_stream(place.path) as stream:
        names = _open(stream, delimiter, {}, block_bytes=_HEAD_BYTES).schema.names
    texts = dict.fromkeys(names, pa.large_string())
    with place.filesystem.open_input_stream(place.path) as stream:
        rows = _open(stream, delimiter, texts, block_bytes=_HEAD_BYTES)
        return next(rows, pa.RecordBatch.from_pylist([], rows.schema))


def _type_at_first(column: pa.Array) -> pa.DataType | None:
    """Return a column's type where Arrow would infer another one from its first rows.

    Numbers with leading zeros are text. A column that begins with a number is one of numbers, whatever comes later.
    """
    if pc.any(pc.match_substring_regex(column, _LEADING_ZERO)).as_py():
        return pa.large_string()
    values = [value for value in column.to_pylist() if value not in _MISSING]
    is_number = [_fits(value, pa.float64()) for value in values]
    return pa.float64() if values and is_number[0] and not all(is_number) else None


def _wider(type_: pa.DataType) -> Iterator[pa.DataType]:
    if pa.types.is_null(type_):
        yield pa.int64()
    if pa.types.is_null(type_) or pa.types.is_integer(type_):
        yield pa.float64()
    if pa.types.is_date(type_):
        yield pa.timestamp("us")
    yield pa.large_string()


def _fits(value: str, type_: pa.DataType) -> bool:
    try:
        pa.array([value], pa.large_string()).cast(type_)
    except pa.ArrowInvalid:
        return False
    return True


def _reason(error: BaseException) -> str:
    reason = reason_of(error)
    return f"{reason}; write it in UTF-8" if "UTF8" in reason or "UTF-8" in reason else reason
