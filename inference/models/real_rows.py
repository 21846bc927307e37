"""Rows of entities that a version is tried with: of its model's table, else of the feature table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from inference.errors import BadInput, SourceError
from inference.features import Vectoriser
from inference.features.groups import GroupSource
from inference.features.rows import examples, take
from inference.schema import Block, rows_in
from inference.sources import Source, open_source, read_slices, whole_slices

#: how many a version is tried with, spread over those that are read
TRIED_ROWS = 32
#: how many are read, the first ones of the table; of wide rows fewer
READ_ROWS = 1_000
_READ_VALUES = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Rows as the model's inputs. `name`: of where they are from; `is_real`: no value in them is made up."""

    name: str
    inputs: Block
    is_real: bool


@dataclass(frozen=True)
class RealRows:
    """Where a model's rows are.

    `table`: the path or URI of its table, None where it has none. `stored`: reads some rows of its feature table; None
    in a process without Redis.
    """

    table: str | None = None
    stored: Callable[[], Block] | None = None

    def sample(self, vectoriser: Vectoriser) -> Sample | None:
        """Return some rows; None when the model has no table, and no row is stored that can be used.

        Raises:
            BadInput: no row is stored, and its table cannot be read, lacks a column, or has no usable row at first.
            FunctionFailed: a function of the features failed.
            StoreUnavailable: Redis did not answer in time.
        """
        try:
            found = None if self.table is None else _of_table(self.table, vectoriser)
            return found or self._of_stored(vectoriser)
        except BadInput:
            stored = self._of_stored(vectoriser)
            if stored is None:
                raise
            return stored

    def look(self) -> str:
        """Return a text that changes with the files of the table, and with whether rows are stored."""
        try:
            files = open_source(self.table).files if self.table is not None else ()
            looks = " ".join(file.stamp + file.footer for file in files)
        except BadInput as error:
            looks = error.message
        return f"{looks} {rows_in(self.stored()) > 0 if self.stored else False}"

    def _of_stored(self, vectoriser: Vectoriser) -> Sample | None:
        block = self.stored() if self.stored else {}
        rows = vectoriser.features_from_block(block, rows_in(block), at=time.time()).usable() if block else {}
        requested = vectoriser.contract.groups_from(GroupSource.REQUEST)
        return _spread("the feature table", rows, vectoriser, is_real=not requested) if rows_in(rows) else None


def _of_table(table: str, vectoriser: Vectoriser) -> Sample:
    source, contract = open_source(table, as_text=vectoriser.text_columns), vectoriser.contract
    groups = contract.groups_from(GroupSource.REQUEST)
    requested = {one.table_column: one.name for group in groups for one in contract.features_of(group.name)}
    # what comes with requests and is no column is made up
    absent = {column: name for column, name in requested.items() if column not in source.schema.names}
    schema = source.schema
    for name in absent:
        schema = schema.append(pa.field(name, pa.null()))
    vectoriser.check_schema(schema, table)
    parts, why = [], ""
    for batch in _first_batches(source, [name for name in vectoriser.columns if name not in absent], contract.width):
        rows = vectoriser.features_from_arrow(_with_blanks(batch, vectoriser, absent), at=time.time())
        parts.append(rows.usable())
        why = why or next(examples(rows.reasons, lambda row: f"row {row}", most=1), "")
    block = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if not rows_in(block):
        raise SourceError(f"none of the first rows of {table} can be used: {why}", field="features")
    return _spread(Path(table).name, block, vectoriser, is_real=not absent)


def _spread(name: str, block: Block, vectoriser: Vectoriser, *, is_real: bool) -> Sample:
    chosen = np.linspace(0, rows_in(block) - 1, min(TRIED_ROWS, rows_in(block))).astype(np.intp)
    return Sample(name, vectoriser.inputs(take(block, chosen)), is_real)


def _first_batches(source: Source, columns: list[str], width: int) -> Iterator[pa.RecordBatch]:
    left = max(1, min(READ_ROWS, _READ_VALUES // max(width, 1)))
    for batch in read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=left):
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


def _with_blanks(batch: pa.RecordBatch, vectoriser: Vectoriser, absent: Mapping[str, str]) -> pa.RecordBatch:
    """Return the rows with made-up values of features that no column has: their default, else zeros or ""."""
    defaults = vectoriser.defaults(batch.num_rows).block
    for column, name in absent.items():
        batch = batch.append_column(column, pa.array(defaults[name].tolist()))
    return batch
