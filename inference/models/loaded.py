"""A version in memory: computes predictions of feature rows, and checks the form of its outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from inference import host_locks, tracing
from inference.errors import BadInput, ForecacheError, ModelError, ModelOutOfMemory, PredictionFailed, quoted
from inference.features import Vectoriser
from inference.features.contract import no_features
from inference.features.rows import per_row
from inference.gpus import lock_of_gpu
from inference.logs import get_logger
from inference.models.registry import VersionRecord
from inference.models.runtimes import Runtime, SignedRuntime
from inference.models.runtimes.runtime import failed_call, one_line
from inference.protocols.tensors import check_named, most_rows
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

log = get_logger(__name__)

#: batch sizes change the last bits of float32 matrix products
RTOL, ATOL = 1e-5, 1e-6


@dataclass
class LoadedModel:
    """One version of a model, ready to compute. `known_vectoriser`: None if the model's features are not listed."""

    model: str
    record: VersionRecord
    known_vectoriser: Vectoriser | None
    runtime: Runtime

    @property
    def vectoriser(self) -> Vectoriser:
        """The vectoriser, which turns features into inputs.

        Raises:
            ContractError: the model's features are not listed: it takes tensors only.
        """
        if self.known_vectoriser is None:
            raise no_features(self.record.signature)
        return self.known_vectoriser

    @cached_property
    def gpu_lock(self) -> Callable[[], AbstractContextManager[object]]:
        """Holds back batch workers that share this process's GPU, within a block; nothing on processors."""
        lock = lock_of_gpu(self.runtime.device)
        return nullcontext if lock is None else partial(host_locks.holding, lock, shared=True)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, rows in the order of the inputs. Drops a trailing dimension of 1.

        Raises:
            PredictionFailed: the model raised on these rows, or answered in another form than it declares.
        """
        return served(call(self.runtime, inputs), self.record.signature)

    def call(self, signature: str, tensors: Block) -> Block:
        """Return the outputs of a signature by name, for tensors of its names and types, in any shape.

        Raises:
            BadInput: the model has no such signature, or does not take these tensors.
            PredictionFailed: the model raised.
        """
        declared = self.record.signatures.get(signature)
        if declared is None:
            raise BadInput(f"the model has no signature {quoted(signature)}", field="signature")
        check_named(tensors, declared.inputs)
        with errors_of_rows(tensors):
            # a check of its class would cost as much as the call of a small model
            return cast("SignedRuntime", self.runtime).call(signature, tensors)

    def traced(self, rows: int) -> AbstractContextManager[object]:
        """Return a context in which it computes rows as a part of the current work; searches are not traced."""
        facts: dict[str, str | int] = {
            "forecache.model.name": self.model,
            "forecache.model.version": self.record.version,
        }
        return tracing.span("call the model", {**facts, "forecache.rows": rows})


def call(runtime: Runtime, inputs: Block) -> Block:
    """Return a model's answer in its own shapes. Turns every error of a library into an error of these rows.

    Raises:
        PredictionFailed: the model raised, or its answer cannot be read.
        ModelOutOfMemory: so many rows do not fit into memory.
        ModelUnavailable: an engine elsewhere did not answer.
    """
    with errors_of_rows(inputs):
        return runtime.predict(inputs)


@contextmanager
def errors_of_rows(inputs: Block) -> Iterator[None]:
    """Turn every error of a model's library within the block into an error of these rows; see `call`."""
    try:
        yield
    except ForecacheError:
        raise
    except MemoryError as error:
        raise failed_call(most_rows(inputs), "", out_of_memory=True) from error
    except SystemExit as error:
        if type(error) is not SystemExit:  # Celery ends the worker by a subclass
            raise
        raise PredictionFailed(f"the model failed: it calls sys.exit({error.code!r})") from error
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise failed_call(most_rows(inputs), said, out_of_memory=False) from error


def served(answer: Block, signature: Signature) -> Block:
    """Return a model's answer in the form of the signature, without a trailing dimension of 1 where that has none.

    Raises:
        PredictionFailed: an output has another shape or another kind of values than in the signature.
    """
    return {spec.name: _served(answer[spec.name], spec, spec.name in signature.columns) for spec in signature.outputs}


def observed(signature: Signature, answers: Sequence[Block]) -> Signature:
    """Return the signature, corrected by these answers where they contradict its outputs.

    A dimension that differs between answers is free.

    Raises:
        ModelError: the rank of an output differs between answers, or its values cannot be served.
    """
    outputs = tuple(_observed(spec, [answer[spec.name] for answer in answers]) for spec in signature.model_outputs)
    return signature if outputs == signature.model_outputs else Signature.of_model(signature.inputs, outputs)


def _served(array: npt.NDArray[Any], spec: TensorSpec, is_column: bool) -> npt.NDArray[Any]:
    shape = array.shape[1:]
    if is_column and shape[-1:] == (1,) and _fits(shape[:-1], spec.shape):
        array = array[..., 0]
    elif not _fits(shape, spec.shape):
        raise PredictionFailed(
            f"output {spec.name!r} is declared {_values(spec.shape)} a row, and the model gives {_values(shape)}"
        )
    if array.dtype == spec.dtype.numpy:
        return array
    if not _holds(spec.dtype, array):
        raise PredictionFailed(f"output {spec.name!r} is declared {spec.dtype}, and the model gives {_kind(array)}")
    return array.astype(spec.dtype.numpy)


def _observed(spec: TensorSpec, arrays: Sequence[npt.NDArray[Any]]) -> TensorSpec:
    shapes = {array.shape[1:] for array in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        ranks = " and ".join(_values(shape) for shape in sorted(shapes))
        raise ModelError(f"output {spec.name!r} gives {ranks} a row: export it with one rank", field=spec.name)
    if not all(_fits(shape, spec.shape) for shape in shapes):
        sizes = [set(of_dimension) for of_dimension in zip(*shapes, strict=True)]
        spec = replace(spec, shape=tuple(size.pop() if len(size) == 1 else -1 for size in sizes))
    unfit = next((array for array in arrays if not _holds(spec.dtype, array)), None)
    return spec if unfit is None else replace(spec, dtype=_dtype(spec, unfit))


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    if shape == declared:
        return True
    return len(shape) == len(declared) and all(
        wanted in (size, -1) for size, wanted in zip(shape, declared, strict=True)
    )


def _holds(dtype: DType, array: npt.NDArray[Any]) -> bool:
    if dtype is DType.STRING or array.dtype.kind == "O":
        return dtype is DType.STRING and array.dtype.kind == "O"
    return bool(np.can_cast(array.dtype, dtype.numpy, "same_kind"))


def _dtype(spec: TensorSpec, array: npt.NDArray[Any]) -> DType:
    try:
        return DType(_kind(array))
    except ValueError:
        raise ModelError(f"output {spec.name!r} is {array.dtype}, which cannot be served", field=spec.name) from None


def _kind(array: npt.NDArray[Any]) -> str:
    return DType.STRING.value if array.dtype.kind == "O" else array.dtype.name


def _values(shape: tuple[int, ...]) -> str:
    return "1 value" if not shape else f"[{', '.join('any' if size < 0 else str(size) for size in shape)}] values"


@dataclass
class ScoredRows:
    """Predictions by output name, in the order of the inputs. Failed rows must not be used."""

    outputs: Block
    failed: npt.NDArray[np.bool_]
    #: row → why
    reasons: dict[int, str] = field(default_factory=dict)
    #: the fewest rows of a call that did not fit into memory; None if all calls did
    too_many_rows: int | None = None


def score_rows(loaded: LoadedModel, features: Block) -> ScoredRows:
    """Compute the predictions of usable feature rows in one model call.

    If the call raises, halves it until each bad row is alone; the others keep their answers. A row whose answer is not
    finite fails too.

    Raises:
        ModelOutOfMemory: a single row does not fit into the device's memory.
    """
    inputs = loaded.vectoriser.inputs(features)
    rows = rows_in(inputs)
    scored = ScoredRows({}, np.zeros(rows, dtype=bool))
    calls: list[tuple[int, int, Block]] = []
    with loaded.traced(rows):
        _score_slice(loaded, inputs, 0, rows, calls, scored)
    scored.outputs = _assemble(loaded.record.signature.outputs, calls, rows)
    _fail_non_finite(scored)
    return scored


def prediction_values(outputs: Block) -> list[Any]:
    """Return each row's prediction as JSON: the value of a single output, else an object by output name."""
    columns = {name: _plain(values) for name, values in outputs.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _score_slice(
    loaded: LoadedModel,
    inputs: Block,
    start: int,
    stop: int,
    calls: list[tuple[int, int, Block]],
    scored: ScoredRows,
) -> None:
    if start == stop:
        return
    try:
        calls.append((start, stop, loaded.predict(_slice(inputs, start, stop))))
    except PredictionFailed as error:
        out_of_memory = isinstance(error, ModelOutOfMemory)
        if out_of_memory:
            scored.too_many_rows = min(stop - start, scored.too_many_rows or stop - start)
        if stop - start == 1:
            if out_of_memory:
                raise  # not the row's fault
            scored.failed[start] = True
            scored.reasons[start] = error.message
            return
        middle = (start + stop) // 2
        _score_slice(loaded, inputs, start, middle, calls, scored)
        _score_slice(loaded, inputs, middle, stop, calls, scored)


def _slice(block: Block, start: int, stop: int) -> Block:
    """Return the rows from `start` up to `stop`, as views."""
    return {name: values[start:stop] for name, values in block.items()}


def _assemble(specs: tuple[TensorSpec, ...], calls: list[tuple[int, int, Block]], rows: int) -> Block:
    if len(calls) == 1 and calls[0][:2] == (0, rows):
        return calls[0][2]
    return {spec.name: _assemble_one(spec, calls, rows) for spec in specs}


def _assemble_one(spec: TensorSpec, calls: list[tuple[int, int, Block]], rows: int) -> npt.NDArray[Any]:
    sizes = {outputs[spec.name].shape[1:] for _, _, outputs in calls} or {tuple(max(size, 0) for size in spec.shape)}
    if len(sizes) > 1:
        return _assemble_uneven(spec, calls, rows)
    shape = (rows, *sizes.pop())
    whole = np.full(shape, "", dtype=object) if spec.dtype is DType.STRING else np.zeros(shape, dtype=spec.dtype.numpy)
    for start, stop, outputs in calls:
        whole[start:stop] = outputs[spec.name]
    return whole


def _assemble_uneven(spec: TensorSpec, calls: list[tuple[int, int, Block]], rows: int) -> npt.NDArray[Any]:
    """Return a column of arrays, for a free dimension that differs between the calls."""
    whole = np.empty(rows, dtype=object)
    nothing = np.zeros(tuple(max(size, 0) for size in spec.shape), dtype=spec.dtype.numpy)
    for row in range(rows):
        whole[row] = nothing
    for start, stop, outputs in calls:
        for row in range(start, stop):
            whole[row] = outputs[spec.name][row - start]
    return whole


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Return rows as numbers, text and nested lists. A row may be an array."""
    return [row.tolist() if isinstance(row, np.ndarray) else row for row in values.tolist()]


def _fail_non_finite(scored: ScoredRows) -> None:
    for name, values in scored.outputs.items():
        bad = _non_finite(values)
        for row in np.flatnonzero(bad):
            scored.reasons.setdefault(int(row), f"output {name!r} is not a finite number")
        scored.failed |= bad


def _non_finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return per_row(~np.isfinite(values))
    if values.dtype.kind == "O" and len(values) and isinstance(values[0], np.ndarray) and values[0].dtype.kind == "f":
        return np.array([not np.isfinite(row).all() for row in values])
    return np.zeros(len(values), dtype=bool)


def vector_hashes(inputs: Block) -> list[str]:
    """Return sixteen hex digits for each row of a model's inputs. Equal bits give equal digits."""
    columns = [np.ascontiguousarray(values) for values in inputs.values()]
    # a row of a text column is a str, not an array
    return [_digest([np.asarray(column[row], column.dtype) for column in columns]) for row in range(rows_in(inputs))]


def answers_agree(one: Any, other: Any) -> bool:
    """Tell whether two predictions as plain values are equal but for rounding (relative 1e-5, absolute 1e-6)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(answers_agree(one[name], other[name]) for name in one)
    first, second = np.array(one), np.array(other)
    if first.shape != second.shape:
        return False
    if first.dtype.kind in "iufb" and second.dtype.kind in "iufb":
        return bool(np.allclose(first, second, rtol=RTOL, atol=ATOL, equal_nan=True))
    return bool((first == second).all())


def _digest(values: list[npt.NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(repr(value.tolist()).encode() if value.dtype.kind in "OUS" else value.tobytes())
    return digest.hexdigest()
