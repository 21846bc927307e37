"""Warms a version up: calls it with made-up rows and with rows of entities, and says whether it answers.

Rows of entities come from the model's table, else from its feature table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.errors import BadInput, FunctionFailed, ModelError, ModelOutOfMemory, PredictionFailed, SourceError
from inference.features import Vectoriser
from inference.features.groups import GroupSource
from inference.features.rows import examples, per_row, take
from inference.models.loaded import call, observed
from inference.models.runtimes import Runtime
from inference.models.runtimes.runtime import MisshapenOutput
from inference.schema import Block, DType, Signature, TensorSpec, rows_in
from inference.sources import Source, open_any, read_slices, state_of, whole_slices
from inference.wording import counted

#: so many rows are also tried alone. Their answers may differ from those in the whole call, since a library has other
#: kernels for other numbers of rows: by a share of the answer, and of the largest answer
_ALONE, _RELATIVE, _OF_LARGEST = 3, 0.01, 1e-3
_REPEATS = 3
_MOST_SHOWN = 3
#: sizes of free dimensions for models that take no short ones: of filters and windows, and of pictures
_WIDE = (32, 224)
_MOST_ZEROS = 1 << 24
#: a version is tried with so many rows, spread over those that are read
TRIED_ROWS = 32
#: so many rows are read from the start of the table; fewer wide ones
READ_ROWS = 1_000
_READ_VALUES = 2_000_000


@dataclass(frozen=True)
class WarmUpResult:
    """The result of a warm-up: the `signature` with the outputs as they are.

    `unproven`: why the version answered no row; None if it did. `remark`: a warning about its answers; None for none.
    """

    signature: Signature
    unproven: str | None
    remark: str | None = None


@dataclass(frozen=True)
class _Problem:
    """Why the model did not answer some rows. `no_numbers`: it did not raise, but answered with NaN or infinity."""

    reason: str
    no_numbers: bool = False


@dataclass(frozen=True)
class _Trial:
    """A loaded model under trial. `answers`: all its answers so far; `remarks`: warnings about them."""

    runtime: Runtime
    vectoriser: Vectoriser | None
    rows: SampleRows
    sizes: Sequence[int]
    is_proved: bool
    answers: list[Block] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def problem(self, inputs: Block) -> _Problem | None:
        """Return why the model does not answer these rows; None if it answers at least one with finite numbers.

        Raises:
            MisshapenOutput: the output's form is wrong for any row.
            ModelError: it has never answered a row, and one row does not fit into memory.
        """
        try:
            answer = call(self.runtime, inputs)
        except MisshapenOutput:
            raise
        except ModelOutOfMemory as error:
            if rows_in(inputs) == 1 and not self.is_proved:
                raise ModelError(error.message) from error
            return _Problem(error.message)
        except PredictionFailed as error:
            return _Problem(error.message)
        self.answers.append(answer)
        return _without_numbers(answer)

    def problem_of_each(self, inputs: Block) -> _Problem | None:
        """Return the last row's problem if every row has one, together and alone; else None."""
        problem = self.problem(inputs)
        row = 0
        while problem is not None and row < rows_in(inputs) > 1:
            problem = self.problem({name: values[row : row + 1] for name, values in inputs.items()})
            row += 1
        return problem

    def try_made_up_rows(self) -> _Problem | None:
        """Return the problem of the first size that has one; None if all sizes were answered."""
        for number, count in enumerate(self.sizes, start=1):
            if self.vectoriser is None:
                # a free dimension differs between the calls, so that the outputs show their free dimensions
                inputs = {spec.name: _zeros(spec, count, free=number) for spec in self.runtime.signature.inputs}
            else:
                inputs = warm_up_inputs(self.vectoriser, count)
            problem = self.problem(inputs)
            # zeros may be illegal (for a logarithm), so try ones too
            if problem and (not problem.no_numbers or self.problem(_zeros_to_ones(inputs))):
                return None if self._answers_otherwise() else problem
        return None

    def _answers_otherwise(self) -> bool:
        """Tell whether the model answers requests of its own, or a row whose free dimensions are not as short."""
        if getattr(self.runtime, "has_answered", False):
            return True
        inputs = self.runtime.signature.inputs
        if self.vectoriser is not None or all(-1 not in spec.shape for spec in inputs):
            return False
        return any(
            self.problem({spec.name: _zeros(spec, 1, free=free) for spec in inputs}) is None
            for free in _WIDE
            if all(math.prod(free if size < 0 else size for size in spec.shape) <= _MOST_ZEROS for spec in inputs)
        )

    def try_rows_of_entities(self, vectoriser: Vectoriser, made_up: _Problem | None) -> str | None:
        """Return why the version answered no row of an entity; None if it did. `made_up`: the problem of made-up rows.

        Raises:
            ModelError: it must not be served.
        """
        try:
            sample = self.rows.sample(vectoriser)
        except BadInput as error:
            return f"its table cannot be tried: {error.message}"
        except FunctionFailed as error:
            if self.is_proved:
                return error.message
            raise ModelError(f"its features cannot be computed from real rows: {error.message}") from error
        if sample is None:
            return self._without_sample(made_up)
        problem = self.problem_of_each(sample.inputs)
        if problem is None:
            if not self.is_proved and (odd := check_rows_alone(self.runtime, sample.inputs)):
                self.remarks.append(odd)
            for count in self.sizes:  # no request shall pay for the first call of a size
                self.problem({name: np.resize(of, (count, *of.shape[1:])) for name, of in sample.inputs.items()})
            return None
        tried = counted(rows_in(sample.inputs), "row")
        message = f"it fails on each of the {tried} tried of {sample.name}, such as: {problem.reason}"
        if sample.is_real and not self.is_proved:
            raise ModelError(message)
        return message

    def _without_sample(self, made_up: _Problem | None) -> str | None:
        if made_up and made_up.no_numbers and not self.is_proved:
            raise ModelError(
                f"it answers its warm-up row, but {made_up.reason}: its weights may be broken, or its features need "
                "defaults in features.json that it can answer"
            )
        return None if made_up is None else f"it fails on made-up rows: {made_up.reason}"


def warm_up(
    runtime: Runtime, vectoriser: Vectoriser | None, rows: SampleRows, *, sizes: Sequence[int], is_proved: bool
) -> WarmUpResult:
    """Call a model with made-up rows, once for each of `sizes`, and with rows of entities.

    `vectoriser`: None if the model's features are not listed. `is_proved`: the version has answered rows before. Then
    this only warms it up, and takes rows of entities only if it fails on made-up ones.

    Raises:
        ModelError: it fails on all rows of entities, its outputs cannot be served, or there are no rows of entities
            and it answers made-up ones without a finite number.
        ModelUnavailable: an engine elsewhere did not answer.
        StoreUnavailable: Redis did not answer in time.
    """
    trial = _Trial(runtime, vectoriser, rows, sizes, is_proved)
    try:
        problem = trial.try_made_up_rows()
        unproven = None if problem is None else f"it fails on made-up rows: {problem.reason}"
        if vectoriser is not None and (problem or not is_proved):
            unproven = trial.try_rows_of_entities(vectoriser, problem)
    except MisshapenOutput as error:
        raise ModelError(error.message) from error
    remark = next(iter(trial.remarks), None)
    return WarmUpResult(observed(runtime.signature, trial.answers), None if is_proved else unproven, remark)


def check_rows_alone(runtime: Runtime, inputs: Block) -> str | None:
    """Refuse a model whose answer for a row depends on the other rows of a call.

    Calls it with all rows, and with some of them alone. Returns a warning, and does not refuse, if it answers the same
    row differently each time. Checks nothing if the call with all rows fails.

    Raises:
        ModelError: a row that was answered among others fails alone, or has another answer.
    """
    rows = rows_in(inputs)
    try:
        together = call(runtime, inputs)
    except PredictionFailed:
        return None
    differing: list[tuple[str, Block, Block]] = []
    for row in np.linspace(0, rows - 1, min(_ALONE, rows)).astype(np.intp) if rows > 1 else ():
        alone, among = take(inputs, row[np.newaxis]), take(together, row[np.newaxis])
        if _without_numbers(among):  # this row has no answer among others either
            continue
        try:
            answer = call(runtime, alone)
            name = _differing(answer, among, together)
            if name is not None and not _repeats(runtime, alone, answer):
                return f"output {name!r} of a row is another one each time: batch and real time cannot agree"
        except PredictionFailed as error:
            raise ModelError(
                f"it answers {rows} rows in one call, but not one of them alone: {error.message}; export it so that it "
                "takes any number of rows"
            ) from error
        if name is not None:
            differing.append((name, among, answer))
    # rounding may change one label, but hardly two
    if differing and (len(differing) > 1 or differing[0][1][differing[0][0]].dtype.kind == "f"):
        raise _mixes_rows(*differing[0], rows)
    return None


def _mixes_rows(name: str, among: Block, alone: Block, rows: int) -> ModelError:
    return ModelError(
        f"output {name!r} of a row is {_shown(among[name])} among {rows} rows, and {_shown(alone[name])} alone: its "
        "answers depend on the other rows of a call, as those of a mean or a batch normalisation over the rows do; "
        "export it for inference (training=False, model.eval()), each row computed by itself"
    )


def _repeats(runtime: Runtime, inputs: Block, answer: Block) -> bool:
    """Tell whether a model gives the same answer each time. A random or counting model does not, and mixes no rows."""
    again = [call(runtime, inputs) for _ in range(_REPEATS)]
    return all(_same(one[name], values) for one in again for name, values in answer.items())


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=other.dtype.kind == "f")


def _differing(answer: Block, among: Block, together: Block) -> str | None:
    """Return the output in which two answers for a row differ by more than rounding; None for none."""
    for name, values in answer.items():
        # a free dimension may be as long as the longest row of a call
        if values.shape == among[name].shape and not _alike(values, among[name], together[name]):
            return name
    return None


def _alike(values: npt.NDArray[Any], among: npt.NDArray[Any], together: npt.NDArray[Any]) -> bool:
    if values.dtype.kind != "f" or among.dtype.kind != "f":
        return _same(values, among)
    finite = np.abs(together)[np.isfinite(together)]
    slack = _OF_LARGEST * float(finite.max()) if finite.size else 0.0
    return np.allclose(values, among, rtol=_RELATIVE, atol=slack, equal_nan=True)


def _shown(values: npt.NDArray[Any]) -> str:
    shown = ", ".join(
        f"{value:.6g}" if isinstance(value, float) else str(value) for value in values.ravel()[:_MOST_SHOWN].tolist()
    )
    return f"{shown}, …" if values.size > _MOST_SHOWN else shown


def warm_up_inputs(vectoriser: Vectoriser, rows: int) -> Block:
    """Return the inputs of `rows` rows of defaults, with zeros and "" where there is no default."""
    block = vectoriser.defaults(rows).block
    # no NaN, even for a nullable feature: the answer must show whether the model gives numbers
    known = {
        feature.name: np.nan_to_num(block[feature.name]) if feature.dtype.is_float else block[feature.name]
        for feature in vectoriser.contract.features
    }
    return vectoriser.inputs(known)


def _without_numbers(answer: Block) -> _Problem | None:
    """Return the output without finite numbers; None if the numbers of at least one row are all finite."""
    finite = {name: np.isfinite(values) for name, values in answer.items() if values.dtype.kind == "f"}
    bad = {name: per_row(~of_output) for name, of_output in finite.items()}
    if not bad or not np.logical_or.reduce(list(bad.values())).all():
        return None
    name = next((name for name in bad if not finite[name].any()), None) or next(iter(bad))
    return _Problem(f"output {name!r} is not a finite number", no_numbers=not finite[name].any())


def _zeros(spec: TensorSpec, rows: int, *, free: int) -> npt.NDArray[Any]:
    shape = (rows, *(free if size < 0 else size for size in spec.shape))
    return np.full(shape, "", dtype=object) if spec.dtype is DType.STRING else np.zeros(shape, spec.dtype.numpy)


def _zeros_to_ones(inputs: Block) -> Block:
    return {
        name: values if values.dtype == object else np.where(values == 0, np.ones_like(values), values)
        for name, values in inputs.items()
    }


@dataclass(frozen=True)
class Sample:
    """Rows of entities as the model's inputs. `name`: their table; `is_real`: no value in them is made up."""

    name: str
    inputs: Block
    is_real: bool


@dataclass(frozen=True)
class SampleRows:
    """The tables that have rows of entities.

    `table`: the path or URI of the model's table; None if it has none. `stored`: reads some rows of its feature table;
    None in a process without Redis.
    """

    table: str | None = None
    stored: Callable[[], Block] | None = None

    def sample(self, vectoriser: Vectoriser) -> Sample | None:
        """Return some rows; None if the model has no table, and no usable row is stored.

        Raises:
            BadInput: no row is stored, and the table cannot be read, lacks a column, or has no usable row at its start.
            FunctionFailed: a function of the features failed.
            StoreUnavailable: Redis did not answer in time.
        """
        try:
            found = None if self.table is None else _sample_of_table(self.table, vectoriser)
            return found or self._sample_of_stored(vectoriser)
        except BadInput:
            stored = self._sample_of_stored(vectoriser)
            if stored is None:
                raise
            return stored

    def state(self) -> str:
        """Return a text that changes when the files of the table change, or when the first rows are stored."""
        try:
            state = state_of(self.table) if self.table is not None else ""
        except BadInput as error:
            state = error.message
        return f"{state} {rows_in(self.stored()) > 0 if self.stored else False}"

    def _sample_of_stored(self, vectoriser: Vectoriser) -> Sample | None:
        block = self.stored() if self.stored else {}
        rows = vectoriser.features_from_block(block, rows_in(block), at=time.time()).usable() if block else {}
        requested = vectoriser.contract.groups_from(GroupSource.REQUEST)
        return _spread("the feature table", rows, vectoriser, is_real=not requested) if rows_in(rows) else None


def _sample_of_table(table: str, vectoriser: Vectoriser) -> Sample:
    source = open_any(table, as_text=vectoriser.text_columns, most_rows=READ_ROWS)
    contract = vectoriser.contract
    groups = contract.groups_from(GroupSource.REQUEST)
    requested = {one.table_column: one.name for group in groups for one in contract.features_of(group.name)}
    # a feature of requests that is no column gets made-up values
    absent = {column: name for column, name in requested.items() if column not in source.schema.names}
    schema = source.schema
    for name in absent:
        schema = schema.append(pa.field(name, pa.null()))
    vectoriser.check_schema(schema, table)
    blocks, why = [], ""
    for batch in _first_batches(source, [name for name in vectoriser.columns if name not in absent], contract.width):
        rows = vectoriser.features_from_arrow(_with_blanks(batch, vectoriser, absent), at=time.time())
        blocks.append(rows.usable())
        why = why or next(examples(rows.reasons, lambda row: f"row {row}", most=1), "")
    block = {name: np.concatenate([one[name] for one in blocks]) for name in blocks[0]} if blocks else {}
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
    """Return the rows with made-up values for absent features: their default, else zeros or ""."""
    defaults = vectoriser.defaults(batch.num_rows).block
    for column, name in absent.items():
        batch = batch.append_column(column, pa.array(defaults[name].tolist()))
    return batch
