"""Reads traces of requests, for the simulator: from CSV, Parquet or libCacheSim's binary files, or drawn at random.

A trace lies in an unnamed temporary file of 12 bytes a request, so that memory holds a part of it at a time.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from inference.clock import to_iso
from inference.entities import entity_ids_as_text
from inference.errors import BadInput, SourceError, quoted
from inference.sources.reading import hash_ids
from inference.wording import counted

#: requests that are read or drawn at a time
_AT_A_TIME = 1 << 20
_CSV_BLOCK_BYTES = 16 << 20
#: one request of libCacheSim's oracleGeneral format, packed: its time in seconds, its object, the object's size, and
#: the number of the next request for it (https://github.com/1a1a11a/libCacheSim)
_ORACLE_GENERAL = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
_ORACLE_NAME = "oraclegeneral"
UNITS_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
#: the end of the year 9999
_LATEST_MS = 253_402_300_799_999
#: the distribution of a drawn trace takes 8 bytes an entity
MOST_DRAWN_ENTITIES = 20_000_000
#: a Monday, so that a drawn trace begins as a week does
_DRAWN_FROM_MS = 1_767_571_200_000

Times = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


class Requests(NamedTuple):
    """Some requests in the order of their times. `entities`: numbers from 0; `times`: epoch milliseconds."""

    entities: Codes
    times: Times


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their times, in two arrays that the system pages in from a temporary file.

    `entities`: how many different ones there are, or could be drawn.
    """

    requests: Requests
    entities: int

    def __len__(self) -> int:
        return len(self.requests.times)

    @property
    def begins_ms(self) -> int:
        """The time of the first request, epoch milliseconds."""
        return int(self.requests.times[0])

    @property
    def span_s(self) -> float:
        """Seconds from the first request to the last, at least one."""
        return max(int(self.requests.times[-1]) - self.begins_ms, 1000) / 1000


class Columns(NamedTuple):
    """The names of a trace's columns, and the unit of times that are numbers (one of `UNITS_MS`)."""

    entity: str = "entity"
    time: str = "time"
    unit: str = "s"


def read_trace(file: Path, columns: Columns) -> Trace:
    """Read a trace: `.csv`, `.parquet` or `…oracleGeneral…`; CSV and binary files may be compressed (`.gz`, `.zst`).

    A time is a number since the epoch, a timestamp, or text in ISO 8601; without a zone it is in UTC.

    Raises:
        SourceError: the file cannot be read, lacks a column, or holds no request.
        BadInput: a time is missing or earlier than the one before it.
    """
    try:
        return _spooled(_dated(_batches(file, columns), columns))
    except FileNotFoundError as error:
        raise SourceError(f"--trace: there is no file {quoted(str(file))}", field="trace") from error
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"--trace: {quoted(str(file))} cannot be read: {error}", field="trace") from error


def draw_trace(*, exponent: float, entities: int, requests: int, span_s: float, seed: int = 0) -> Trace:
    """Draw requests: entity number k is asked for in proportion to 1 / (k + 1)**exponent, at uniformly random times.

    Raises:
        BadInput: there are too many entities to draw from.
    """
    if entities > MOST_DRAWN_ENTITIES:
        raise BadInput(
            f"--entities: a trace is drawn from at most {MOST_DRAWN_ENTITIES} entities; --at-entities tells the sizes "
            "for more", field="entities",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    shares = np.cumsum(np.arange(1, entities + 1, dtype=np.float64) ** -exponent)
    shares /= shares[-1]
    parts = -(-requests // _AT_A_TIME)
    # the parts of a uniform draw are drawn apart, so that none must be sorted whole
    sizes = rng.multinomial(requests, np.full(parts, 1 / parts))
    length_ms = span_s * 1000 / parts

    def drawn() -> Iterator[tuple[npt.NDArray[np.int32], Times]]:
        for number, size in enumerate(sizes.tolist()):
            times = _DRAWN_FROM_MS + ((number + np.sort(rng.random(size))) * length_ms).astype(np.int64)
            yield np.searchsorted(shares, rng.random(size), side="right").astype(np.int32), times

    return _written(drawn(), entities)


# --- files ---


def _batches(file: Path, columns: Columns) -> Iterator[tuple[Any, Any]]:
    """Yield the columns of entities (Arrow, or their numbers) and of times."""
    name = file.name.lower()
    if _ORACLE_NAME in name:
        return _oracle_general(file)
    if name.endswith(".parquet"):
        return _parquet(file, columns)
    if ".csv" in file.suffixes or name.endswith(".csv"):
        return _csv(file, columns)
    raise SourceError(
        f"--trace: {quoted(str(file))} is of no known format: give a .csv, a .parquet or an .oracleGeneral file",
        field="trace",
    )


def _oracle_general(file: Path) -> Iterator[tuple[Any, Any]]:
    size = _ORACLE_GENERAL.itemsize
    with pa.input_stream(str(file)) as stream:
        while data := stream.read(_AT_A_TIME * size):
            if len(data) % size:
                raise SourceError(f"--trace: {quoted(str(file))} ends within a request of {size} bytes", field="trace")
            part = np.frombuffer(data, _ORACLE_GENERAL)
            yield part["id"], pa.array(part["time"].astype(np.int64))


def _parquet(file: Path, columns: Columns) -> Iterator[tuple[Any, Any]]:
    with pq.ParquetFile(file) as source:
        _check_columns(file, source.schema_arrow.names, columns)
        for batch in source.iter_batches(_AT_A_TIME, columns=[columns.entity, columns.time]):
            yield batch.column(columns.entity), batch.column(columns.time)


def _csv(file: Path, columns: Columns) -> Iterator[tuple[Any, Any]]:
    with _open_csv(file) as reader:
        _check_columns(file, reader.schema.names, columns)
    # other columns may hold anything; and an id such as 007 is text, whatever the first block looks like
    wanted = pa_csv.ConvertOptions(
        column_types={columns.entity: pa.string()}, include_columns=[columns.entity, columns.time]
    )
    with _open_csv(file, convert_options=wanted) as reader:
        for batch in reader:
            yield batch.column(0), batch.column(1)


def _open_csv(file: Path, **options: Any) -> pa_csv.CSVStreamingReader:
    return pa_csv.open_csv(
        pa.input_stream(str(file)), read_options=pa_csv.ReadOptions(block_size=_CSV_BLOCK_BYTES), **options
    )


def _check_columns(file: Path, there: list[str], columns: Columns) -> None:
    for option, wanted in (("--entity-column", columns.entity), ("--time-column", columns.time)):
        if wanted not in there:
            known = ", ".join(quoted(name) for name in there[:20])
            raise SourceError(
                f"--trace: {quoted(str(file))} has no column {quoted(wanted)}: it has {known}; name yours by {option}",
                field=option.removeprefix("--").replace("-", "_"),
            )


def _dated(batches: Iterable[tuple[Any, Any]], columns: Columns) -> Iterator[tuple[Any, Times]]:
    """Yield hashes of the entities, and times in epoch milliseconds.

    Raises:
        BadInput: a time is missing or out of order.
    """
    row, latest = 0, -_LATEST_MS
    for entities, column in batches:
        if not len(column):
            continue
        times = _milliseconds(column, columns)
        early = np.flatnonzero(np.diff(times, prepend=latest) < 0)
        if len(early):
            raise BadInput(
                f"--trace: row {row + int(early[0]) + 1} is earlier than the row before it: sort the trace by "
                f"{quoted(columns.time)}", field="trace",
            )  # fmt: skip
        row, latest = row + len(times), int(times[-1])
        yield _hashes(entities, columns.entity), times


def _hashes(entities: Any, name: str) -> npt.NDArray[np.uint64]:
    if isinstance(entities, np.ndarray):
        return entities
    return hash_ids(pc.fill_null(entity_ids_as_text(entities, name), ""))


def _milliseconds(column: pa.Array, columns: Columns) -> Times:
    name = quoted(columns.time)
    if column.null_count:
        raise BadInput(f"--trace: column {name} has a row without a time", field="time_column")
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _parsed(column, name)
    elif pa.types.is_date(kind):
        column = pc.cast(column, pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        return np.asarray(pc.cast(pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False), pa.int64()))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise BadInput(f"--trace: column {name} holds no times but {kind}", field="time_column")
    times = np.asarray(column).astype(np.float64) * UNITS_MS[columns.unit]
    wrong = times[~(np.abs(times) <= _LATEST_MS)]
    if len(wrong):
        raise BadInput(
            f"--trace: column {name} holds {wrong[0] / UNITS_MS[columns.unit]:g}, which is no time in "
            f"{columns.unit}: give --time-unit", field="time_unit",
        )  # fmt: skip
    return np.floor(times).astype(np.int64)


def _parsed(texts: pa.Array, name: str) -> pa.Array:
    """Return timestamps of texts in ISO 8601; those without a zone are in UTC."""
    zoned = pc.match_substring_regex(texts, r"(Z|[+-]\d\d(:?\d\d)?)$")
    # a date alone ends like a zone
    zoned = pc.and_(zoned, pc.match_substring(texts, ":"))
    try:
        return pc.cast(pc.if_else(zoned, texts, pc.binary_join_element_wise(texts, "Z", "")), pa.timestamp("ms", "UTC"))
    except pa.ArrowInvalid as error:
        found = re.search("'.*?'", str(error))
        what = found[0].removesuffix("Z'").removesuffix("'") + "'" if found else "a text"
        raise BadInput(
            f"--trace: column {name} holds {what}, which is neither a number nor a time in ISO 8601",
            field="time_column",
        ) from error


# --- the temporary file ---


def _spooled(batches: Iterable[tuple[npt.NDArray[np.uint64], Times]]) -> Trace:
    """Number the entities in the order of their first requests, and keep the trace."""
    known = pa.array([], pa.uint64())

    def numbered() -> Iterator[tuple[Codes, Times]]:
        nonlocal known
        for hashes, times in batches:
            encoded = pa.array(hashes).dictionary_encode()
            numbers = np.asarray(pc.fill_null(pc.index_in(encoded.dictionary, known), -1)).copy()
            new = np.flatnonzero(numbers < 0)
            numbers[new] = len(known) + np.arange(len(new))
            known = pa.concat_arrays([known, encoded.dictionary.take(pa.array(new))])
            yield numbers[np.asarray(encoded.indices)].astype(np.int32), times

    trace = _written(numbered(), 0)
    return Trace(trace.requests, len(known))


def _written(parts: Iterable[tuple[Codes, Times]], entities: int) -> Trace:
    """Write the requests to unnamed temporary files, which end with the arrays that map them.

    Raises:
        BadInput: there is none.
    """
    with tempfile.TemporaryFile() as codes, tempfile.TemporaryFile() as instants:
        for numbers, times in parts:
            codes.write(numbers.tobytes())
            instants.write(times.tobytes())
        if not instants.tell():
            raise BadInput("--trace: it holds no request", field="trace")
        for file in (codes, instants):
            file.flush()
        return Trace(Requests(np.memmap(codes, np.int32, "r"), np.memmap(instants, np.int64, "r")), entities)


def describe(trace: Trace) -> str:
    """Return the trace in one line."""
    ends = trace.begins_ms / 1000 + trace.span_s
    return (
        f"{counted(len(trace), 'request')} for {counted(trace.entities, 'entity', 'entities')} "
        f"from {to_iso(trace.begins_ms / 1000)[:16]}Z to {to_iso(ends)[:16]}Z"
    )
