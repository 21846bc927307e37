"""Reads the first rows of a table and guesses which columns hold entity ids and event times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inference.entities import check_entity_column_type, entity_ids_as_text, illegal_entity_ids
from inference.errors import SourceError
from inference.features import EARLIEST_S, LATEST_S, event_times
from inference.sources import (
    Source,
    column_problem,
    column_type_name,
    concat_rows,
    flat_columns,
    newest_instants,
    read_slices,
    whole_slices,
)
from inference.wording import counted

FIRST_ROWS = 10_000
#: stops earlier if the rows are long
FIRST_BYTES = 64 << 20
_STEP_ROWS = 1_000
#: looks at the last files of a folder: file names with a date sort so that these are the newest
_FOOTERS = 20


@dataclass(frozen=True)
class FirstRows:
    """The first rows of some columns. `whole`: the table has no other rows."""

    table: pa.Table
    whole: bool

    @property
    def words(self) -> str:
        """Which rows these are, in words."""
        rows = counted(self.table.num_rows, "row").replace(",", " ")
        return f"all {rows}" if self.whole else f"the first {rows}"


def read_first_rows(source: Source, columns: Sequence[str], *, rows: int = FIRST_ROWS) -> FirstRows:
    """Return the first rows of some columns: at most `rows` and about 64 MiB.

    Raises:
        SourceError: a file cannot be read.
    """
    kept: list[pa.RecordBatch] = []
    seen = size = 0
    for batch in _batches(source, columns, min(rows, _STEP_ROWS)) if columns else ():
        kept.append(batch.slice(0, rows - seen))
        seen, size = seen + kept[-1].num_rows, size + batch.nbytes
        if seen >= rows or size >= FIRST_BYTES:
            break
    table = concat_rows([pa.Table.from_batches([batch]) for batch in kept]) if kept else pa.table({})
    return FirstRows(table.combine_chunks(), seen >= source.rows)


def newest_times(source: Source, columns: Sequence[str]) -> dict[str, datetime]:
    """Return the newest instant of each column: from the Parquet footers, else from rows of the last file.

    Leaves out columns without any instant.
    """
    newest: dict[str, float] = {}
    for file in source.files[-_FOOTERS:]:
        metadata = pq.read_metadata(file.path)
        places = flat_columns(metadata) if columns else {}
        for name in columns:
            instants = newest_instants(metadata, places[name]).values() if name in places else ()
            newest[name] = max([newest.get(name, -np.inf), *instants])
    for name in [name for name in columns if not np.isfinite(newest.get(name, np.nan))]:
        newest[name] = _newest_in_last_rows(source, name)
    return {name: datetime.fromtimestamp(_clipped(at), UTC) for name, at in newest.items() if not np.isnan(at)}


def _clipped(at: float) -> float:
    return min(max(at, EARLIEST_S), LATEST_S)


def _newest_in_last_rows(source: Source, column: str) -> float:
    """Return the newest instant in the last file's first rows, NaN for none. INT96 columns have no statistics."""
    type_ = source.schema.field(column).type
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        return np.nan
    files = source.files[-1:]
    batch = next(read_slices(files, whole_slices(files), columns=[column], batch_rows=FIRST_ROWS), None)
    times = event_times(batch.column(column)) if batch is not None else np.empty(0)
    return float(np.fmax.reduce(times, initial=np.nan))


def _batches(source: Source, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    return read_slices(source.files, whole_slices(source.files), columns=list(columns), batch_rows=rows)


# --- guesses ---

#: at most so many columns are read
MAX_CANDIDATES = 20
#: at most so many unfit columns are named in a message
_MOST_UNFIT = 3
#: older features are stale by the default age limit, so that every answer would be marked stale
FRESH_WITHIN = timedelta(hours=24)

_ID_NAME = re.compile(r"(^|_)(id|ids|uuid|guid|key)$|[a-z0-9](Id|ID|Key|Uuid|UUID)$", re.IGNORECASE)
#: pandas' name in Parquet for an index without a name
_UNNAMED_INDEX = re.compile(r"^__index_level_\d+__$")
_TIME_NAMES = (
    re.compile(r"updated|modified|refreshed|as_?of|snapshot", re.IGNORECASE),
    re.compile(r"event_?(time|date|ts|at)|observed|computed|ingested|loaded|valid_from", re.IGNORECASE),
    re.compile(r"^(timestamp|ts|time|date|datetime)$", re.IGNORECASE),
)


@dataclass(frozen=True)
class Guess:
    """A proposed column, or None, and one line that says why."""

    value: str | None
    reason: str


def looks_like_id(name: str) -> bool:
    """Tell whether a name looks like that of an id column: `user_id`, `uuid`, `customerKey`."""
    return bool(_ID_NAME.search(name))


def guess_model_name(folder: Path) -> str:
    """Return a legal model name made from the name of a folder or file: `models/Delay v2/3` gives `delay-v2`."""
    absolute = folder.absolute()
    for part in (absolute.stem if folder.is_file() else absolute.name, absolute.parent.name):
        name = re.sub(r"[^a-z0-9_-]+", "-", part.lower()).strip("-_")[:64]
        if name and not name.isdecimal():
            return name
    return "model"


def entity_candidates(schema: pa.Schema, hints: str = "") -> list[str]:
    """Return the columns that may hold entity ids, the likeliest first. `hints`: names of the table and the model."""
    ranked = []
    for position, field in enumerate(schema):
        rank = _entity_rank(field, hints)
        if rank is not None and column_problem(field) is None:
            ranked.append((rank, position, field.name))
    return [name for _, _, name in sorted(ranked)[:MAX_CANDIDATES]]


def unfit_id_columns(schema: pa.Schema) -> list[str]:
    """Return one sentence for each column that is named like an id but cannot hold ids."""
    reasons = []
    for field in schema:
        try:
            check_entity_column_type(field.name, field.type, column_type_name(field))
        except SourceError as error:
            if looks_like_id(field.name):
                reasons.append(error.message)
    return reasons


def guess_entity_column(first_rows: FirstRows, unfit: Sequence[str] = (), *, may_repeat: bool = False) -> Guess:
    """Return the first column with a different legal id in every row.

    `unfit`: from `unfit_id_columns`, part of the reason if there is no such column. `may_repeat`: ids may repeat.
    """
    for name in first_rows.table.column_names:
        if not first_rows.table.num_rows or _id_problem(first_rows, name, may_repeat=may_repeat):
            continue
        return Guess(name, _reason(first_rows, name, may_repeat=may_repeat))
    looked = ", ".join(map(repr, first_rows.table.column_names[:5]))
    why = (
        f"{looked}: not unique in {first_rows.words}; `--rows newest` takes the newest of several"
        if looked
        else "none of text or integers is named like an id"
    )
    return Guess(None, "; ".join([f"no column looks like one id a row ({why})", *unfit[:_MOST_UNFIT]]))


def check_entity_column(first_rows: FirstRows, column: str, *, may_repeat: bool = False) -> str:
    """Return why a column can be the entity column.

    Raises:
        SourceError: its type holds no ids, an id is illegal, or an id repeats and must not.
    """
    check_entity_column_type(column, first_rows.table.schema.field(column).type)
    problem = _id_problem(first_rows, column, may_repeat=may_repeat)
    if problem:
        raise SourceError(
            f"entity column {column!r} {problem}: a table has one row per entity, or `--rows newest` takes the newest "
            "of several",
            field=column,
        )
    return _reason(first_rows, column, may_repeat=may_repeat)


def time_candidates(schema: pa.Schema) -> list[str]:
    """Return the columns of instants, the likeliest names for a row's age first."""
    columns = [
        field.name
        for field in schema
        if (pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)) and column_problem(field) is None
    ]
    return sorted(columns, key=_time_rank)[:MAX_CANDIDATES]


def guess_event_time(candidates: list[str], newest: Mapping[str, datetime], now: datetime) -> Guess:
    """Return the column that says how old a row's features are, if its name and its values fit.

    `newest`: the newest known instant of each column. A column whose newest instant is over a day old is not proposed,
    since every answer would be marked stale from the start.
    """
    if not candidates:
        return Guess(None, "the table has no column of timestamps: features are as old as the run that reads them")
    best = candidates[0]
    others = f" (others: {', '.join(map(repr, candidates[1:4]))})" if len(candidates) > 1 else ""
    if _time_rank(best) == len(_TIME_NAMES):
        return Guess(None, f"{best!r} does not sound like the age of a row's features{others}")
    known = newest.get(best)
    if known is None:
        return Guess(best, f"timestamps, named like the age of a row{others}")
    if now - known > FRESH_WITHIN:
        return Guess(None, f"the newest {best!r} is of {_minute(known)}: every answer would be marked stale{others}")
    return Guess(best, f"timestamps, the newest of {_minute(known)}{others}")


def given_event_time(column: str, newest: Mapping[str, datetime], now: datetime) -> Guess:
    """Return the column that a person named, with a warning if its values mark every answer stale."""
    known = newest.get(column)
    if known is None or now - known <= FRESH_WITHIN:
        return Guess(column, "as given")
    return Guess(column, f"as given; its newest is of {_minute(known)}, so every answer will be marked stale")


def _entity_rank(field: pa.Field, hints: str) -> int | None:
    """Return the rank of a column as the entity column, 0 for the likeliest; None if it cannot hold ids."""
    if not field.name:
        return None
    try:
        check_entity_column_type(field.name, field.type)
    except SourceError:
        return None
    name = field.name.lower()
    stem = re.sub(r"_?(id|uuid|guid|key)$", "", name)
    if name == "entity_id":
        return 0
    named = looks_like_id(field.name)
    if len(stem) >= 3 and stem in hints.lower():
        return 1 if named else 3
    if named:
        return 2
    # most integer columns without such a name are quantities, not ids
    return None if pa.types.is_integer(field.type) else 4


def _id_problem(first_rows: FirstRows, column: str, *, may_repeat: bool) -> str | None:
    ids = entity_ids_as_text(first_rows.table.column(column).combine_chunks(), column)
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], pa.string())
    illegal = illegal_entity_ids(ids)
    if pc.any(illegal).as_py():
        return f"holds {ids.filter(illegal)[0].as_py()!r:.60}, which is not a legal id, in {first_rows.words}"
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if may_repeat or not len(twice):
        return None
    return f"repeats {twice[0].as_py()!r:.60} in {first_rows.words}"


def _time_rank(name: str) -> int:
    return next((rank for rank, pattern in enumerate(_TIME_NAMES) if pattern.search(name)), len(_TIME_NAMES))


def _kind(type_: pa.DataType) -> str:
    value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
    return "integers" if pa.types.is_integer(value_type) or pa.types.is_decimal(value_type) else "text"


def _reason(first_rows: FirstRows, column: str, *, may_repeat: bool) -> str:
    unnamed = (
        "; it is the index of the DataFrame that wrote the table, which had no name: "
        "df.rename_axis('user_id') gives it one"
    )
    fit = "legal" if may_repeat else "unique"
    reason = f"{_kind(first_rows.table.schema.field(column).type)}, {fit} in {first_rows.words}"
    return reason + unnamed if _UNNAMED_INDEX.match(column) else reason


def _minute(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M UTC")
