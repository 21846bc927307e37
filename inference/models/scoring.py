"""One model call for many rows, of which a few may be bad."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelOutOfMemory, PredictionFailed
from inference.features.rows import per_row
from inference.models.loaded import LoadedModel
from inference.schema import Block, DType, TensorSpec, rows_in


@dataclass
class ScoredRows:
    """Predictions by output name, in the order of the inputs. Failed rows must not be used."""

    outputs: Block
    failed: npt.NDArray[np.bool_]
    #: row → why
    reasons: dict[int, str] = field(default_factory=dict)
    #: the fewest rows that did not fit into memory in one call; None when all did
    too_many_rows: int | None = None


def score_rows(loaded: LoadedModel, features: Block) -> ScoredRows:
    """Compute the predictions of usable feature rows in one model call.

    When the call raises, it is halved until the rows at fault stand alone; the others keep their answers.
    A row with a non-finite answer fails too.

    Raises:
        ModelOutOfMemory: not even one row fits into the device's memory.
    """
    inputs = loaded.vectoriser.inputs(features)
    rows = rows_in(inputs)
    scored = ScoredRows({}, np.zeros(rows, dtype=bool))
    parts: list[tuple[int, int, Block]] = []
    _call(loaded, inputs, 0, rows, parts, scored)
    scored.outputs = _assemble(loaded.record.signature.outputs, parts, rows)
    _fail_non_finite(scored)
    return scored


def prediction_values(outputs: Block) -> list[Any]:
    """Return each row's prediction as JSON: the value of a single output, else an object by output name."""
    columns = {name: _plain(values) for name, values in outputs.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _call(
    loaded: LoadedModel,
    inputs: Block,
    start: int,
    stop: int,
    parts: list[tuple[int, int, Block]],
    scored: ScoredRows,
) -> None:
    if start == stop:
        return
    try:
        parts.append((start, stop, loaded.predict(_slice(inputs, start, stop))))
    except PredictionFailed as error:
        out_of_memory = isinstance(error, ModelOutOfMemory)
        if out_of_memory:
            scored.too_many_rows = min(stop - start, scored.too_many_rows or stop - start)
        if stop - start == 1:
            if out_of_memory:
                raise  # no fault of the row's
            scored.failed[start] = True
            scored.reasons[start] = error.message
            return
        middle = (start + stop) // 2
        _call(loaded, inputs, start, middle, parts, scored)
        _call(loaded, inputs, middle, stop, parts, scored)


def _slice(block: Block, start: int, stop: int) -> Block:
    """Return the rows from `start` up to `stop`, as views."""
    return {name: values[start:stop] for name, values in block.items()}


def _assemble(specs: tuple[TensorSpec, ...], parts: list[tuple[int, int, Block]], rows: int) -> Block:
    if len(parts) == 1 and parts[0][:2] == (0, rows):
        return parts[0][2]
    return {spec.name: _assemble_one(spec, parts, rows) for spec in specs}


def _assemble_one(spec: TensorSpec, parts: list[tuple[int, int, Block]], rows: int) -> npt.NDArray[Any]:
    sizes = {part[spec.name].shape[1:] for _, _, part in parts} or {tuple(max(size, 0) for size in spec.shape)}
    if len(sizes) > 1:
        return _assemble_uneven(spec, parts, rows)
    shape = (rows, *sizes.pop())
    whole = np.full(shape, "", dtype=object) if spec.dtype is DType.STRING else np.zeros(shape, dtype=spec.dtype.numpy)
    for start, stop, part in parts:
        whole[start:stop] = part[spec.name]
    return whole


def _assemble_uneven(spec: TensorSpec, parts: list[tuple[int, int, Block]], rows: int) -> npt.NDArray[Any]:
    """Return a column of arrays, for rows whose free dimension differs between the calls."""
    whole = np.empty(rows, dtype=object)
    nothing = np.zeros(tuple(max(size, 0) for size in spec.shape), dtype=spec.dtype.numpy)
    for row in range(rows):
        whole[row] = nothing
    for start, stop, part in parts:
        for row in range(start, stop):
            whole[row] = part[spec.name][row - start]
    return whole


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Return rows as numbers, text and nested lists; each may be an array of its own."""
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
