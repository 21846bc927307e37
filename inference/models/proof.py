"""Shows that a version answers before it may serve: by rows of its model's table, else by made-up rows."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from inference.errors import BadInput, FunctionFailed, ModelError, PredictionFailed, SourceError
from inference.features import Vectoriser
from inference.features.groups import GroupSource
from inference.features.rows import examples, per_row, take
from inference.models.outputs import call, observed
from inference.models.runtimes import Runtime
from inference.models.runtimes.tensors import MisshapenOutput
from inference.schema import Block, DType, Signature, TensorSpec, rows_in
from inference.sources import Source, open_source, read_slices, whole_slices

#: rows of the table that a version is tried with, spread over the first ones
TRIED_ROWS = 32
#: how many those are; of wide rows fewer
READ_ROWS = 1_000
_READ_VALUES = 2_000_000


@dataclass(frozen=True)
class Proof:
    """What the trial showed: the `signature`, with outputs as they are.

    `unproven`: why nothing shows that the version answers; None when it answered rows.
    """

    signature: Signature
    unproven: str | None


@dataclass(frozen=True)
class _Problem:
    """Why the model made nothing of some rows. `no_numbers`: it did not raise, but answered with NaN or infinity."""

    reason: str
    no_numbers: bool = False


@dataclass(frozen=True)
class _Trial:
    """A loaded model on trial. `answers`: all that it gave so far."""

    runtime: Runtime
    answers: list[Block]

    def problem(self, inputs: Block) -> _Problem | None:
        """Return why the model makes nothing of these rows; None when it answers at least one with numbers.

        Raises:
            MisshapenOutput: no row is to blame.
        """
        try:
            answer = call(self.runtime, inputs)
        except MisshapenOutput:
            raise
        except PredictionFailed as error:
            return _Problem(error.message)
        self.answers.append(answer)
        return _without_numbers(answer)

    def problem_of_each(self, inputs: Block) -> _Problem | None:
        """Return the last row's problem when every row has one, whether together or alone."""
        problem = self.problem(inputs)
        row = 0
        while problem is not None and row < rows_in(inputs) > 1:
            problem = self.problem({name: values[row : row + 1] for name, values in inputs.items()})
            row += 1
        return problem


def prove(
    runtime: Runtime, vectoriser: Vectoriser | None, *, sizes: Sequence[int], table: str | None, is_proved: bool
) -> Proof:
    """Call a model with made-up rows, once for each of `sizes`, and with rows of its table.

    `vectoriser`: None for a model whose features nobody has listed. `table`: an absolute path or URI, None where there
    is none. `is_proved`: the version has answered rows before. It is only warmed up, by the table where it refuses
    made-up rows.

    Raises:
        ModelError: it fails on all rows of the table, its outputs cannot be served, or, without a table, it answers
            made-up rows with no finite number.
        ModelUnavailable: an engine elsewhere did not answer.
    """
    trial = _Trial(runtime, [])
    try:
        problem = _try_made_up_rows(trial, vectoriser, sizes)
        unproven = None if problem is None else f"it fails on made-up rows: {problem.reason}"
        if table is not None and vectoriser is not None:
            if problem or not is_proved:
                unproven = _try_table(trial, vectoriser, table, sizes, is_proved=is_proved)
        elif problem and problem.no_numbers and not is_proved:
            raise ModelError(
                f"it answers its warm-up row, but {problem.reason}: its weights may be broken, or its features need "
                "defaults in features.json that it can answer"
            )
    except MisshapenOutput as error:
        raise ModelError(error.message) from error
    return Proof(observed(runtime.signature, trial.answers), None if is_proved else unproven)


def warm_up_inputs(vectoriser: Vectoriser, rows: int) -> Block:
    """Return the inputs of so many rows of defaults, with zeros and "" where there is no default."""
    block = vectoriser.defaults(rows).block
    # a NaN that the model may be given tells nothing of whether it answers with numbers
    known = {
        feature.name: np.nan_to_num(block[feature.name]) if feature.nullable else block[feature.name]
        for feature in vectoriser.contract.features
    }
    return vectoriser.inputs(known)


def first_rows(table: str, vectoriser: Vectoriser) -> tuple[Block, bool]:
    """Return the inputs of some of a table's first rows, and whether nothing in them is made up.

    What comes with requests, and is no column of the table, is made up.

    Raises:
        SourceError: the table cannot be read, lacks a column, or none of its first rows can be used.
        BadInput: its URI cannot be opened.
        FunctionFailed: a function of the features failed.
    """
    source = open_source(table, as_text=vectoriser.text_columns)
    contract = vectoriser.contract
    groups = contract.groups_from(GroupSource.REQUEST)
    requested = [feature.name for group in groups for feature in contract.features_of(group.name)]
    absent = sorted(set(requested) - set(source.schema.names))
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
    chosen = np.linspace(0, rows_in(block) - 1, min(TRIED_ROWS, rows_in(block))).astype(np.intp)
    return vectoriser.inputs(take(block, chosen)), not absent


def table_look(table: str) -> str:
    """Return a text that changes with a table's files; where it cannot be read, why."""
    try:
        files = open_source(table).files
    except BadInput as error:
        return error.message
    return " ".join(file.stamp + file.footer for file in files)


def _try_made_up_rows(trial: _Trial, vectoriser: Vectoriser | None, sizes: Sequence[int]) -> _Problem | None:
    """Return the problem of the first size that has one; None when all were answered."""
    for number, count in enumerate(sizes, start=1):
        if vectoriser is None:
            # free dimensions differ from one call to the next, so that outputs show which of theirs do
            inputs = {spec.name: _zeros(spec, count, free=number) for spec in trial.runtime.signature.inputs}
        else:
            inputs = warm_up_inputs(vectoriser, count)
        problem = trial.problem(inputs)
        # zeros may be no legal values (a logarithm): ones are tried too
        if problem and (not problem.no_numbers or trial.problem(_zeros_to_ones(inputs))):
            return problem
    return None


def _try_table(
    trial: _Trial, vectoriser: Vectoriser, table: str, sizes: Sequence[int], *, is_proved: bool
) -> str | None:
    """Return why the table does not show that the version answers; None when a row of it was answered."""
    try:
        rows, is_real = first_rows(table, vectoriser)
        problem = trial.problem_of_each(rows)
    except BadInput as error:
        return f"its table cannot be tried: {error.message}"
    except FunctionFailed as error:
        rows, is_real, problem = {}, True, _Problem(error.message)
    if problem is None:
        for count in sizes:  # no request is to pay for the first call of a size
            trial.problem({name: np.resize(values, (count, *values.shape[1:])) for name, values in rows.items()})
        return None
    tried = f"each of the {rows_in(rows)} rows tried" if rows else "the first rows"
    reason = f"it fails on {tried} of {Path(table).name}, such as: {problem.reason}"
    if is_real and not is_proved:
        raise ModelError(reason)
    return reason


def _first_batches(source: Source, columns: list[str], width: int) -> Iterator[pa.RecordBatch]:
    left = max(1, min(READ_ROWS, _READ_VALUES // max(width, 1)))
    for batch in read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=left):
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


def _with_blanks(batch: pa.RecordBatch, vectoriser: Vectoriser, absent: Collection[str]) -> pa.RecordBatch:
    """Return the rows with made-up values of features that no column has: their default, else zeros or ""."""
    defaults = vectoriser.defaults(batch.num_rows).block
    for name in absent:
        batch = batch.append_column(name, pa.array(defaults[name].tolist()))
    return batch


def _without_numbers(answer: Block) -> _Problem | None:
    """Return what is no number in every row; None when one row at least is all numbers."""
    finite = {name: np.isfinite(values) for name, values in answer.items() if values.dtype.kind == "f"}
    bad = {name: per_row(~of_output) for name, of_output in finite.items()}
    if not bad or not np.logical_or.reduce(list(bad.values())).all():
        return None
    name = next((name for name in bad if not finite[name].any()), None) or next(iter(bad))
    return _Problem(f"output {name!r} is not a finite number", no_numbers=not finite[name].any())


def _zeros(spec: TensorSpec, rows: int, *, free: int) -> np.ndarray:
    shape = (rows, *(free if size < 0 else size for size in spec.shape))
    return np.full(shape, "", dtype=object) if spec.dtype is DType.STRING else np.zeros(shape, spec.dtype.numpy)


def _zeros_to_ones(inputs: Block) -> Block:
    return {
        name: values if values.dtype == object else np.where(values == 0, np.ones_like(values), values)
        for name, values in inputs.items()
    }
