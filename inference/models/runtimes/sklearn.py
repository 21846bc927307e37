"""scikit-learn models in memory, and other objects that predict.

It imports pandas late: a model that was fitted on an array does not need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ContractError, ModelError
from inference.features import FeatureContract
from inference.models.runtimes.runtime import (
    LoadOptions,
    as_served,
    cpu_name,
    dtype_of,
    failed_call,
    one_line,
    plain_numbers,
)
from inference.models.runtimes.sklearn_columns import (
    Learnt,
    fitted_columns,
    learnt_columns,
    takes_documents,
    takes_records,
)
from inference.models.runtimes.sklearn_files import Estimator, check_fitted, read_estimator
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

#: the input of a model without names of columns and without a feature contract
_ROWS = "x"
_GUESSED = " (if it takes text, say which of its columns are text: list them all in features.json)"
_PREDICTION, _LABEL, _PROBABILITIES = "prediction", "label", "probabilities"


def load(file: Path, options: LoadOptions, contract: FeatureContract | None) -> SklearnRuntime:
    """Load the estimator in `file`. Unless code is allowed, all types in a skops file must be trusted."""
    return SklearnRuntime(read_estimator(file, options), file, contract)


class SklearnRuntime:
    """An estimator in memory. Each feature is an input. A classifier with probabilities gives label and probabilities.

    An estimator that was fitted on a table knows the names of its columns. The contract has their dtypes, and the names
    for other estimators.
    """

    def __init__(self, read: Estimator, file: Path, contract: FeatureContract | None) -> None:
        self._model = model = read.model
        #: that another version of scikit-learn saved it, in words; "" for the same
        self.notice = read.remark
        self._names, self._width = fitted_columns(model)
        self._documents, self._records = takes_documents(model), takes_records(model)
        self._guessed = contract is None and bool(self._names)
        self._learnt = learnt_columns(model, len(self._names) or self._width)
        #: names to try if the model knows no names, but may look columns up by name; [] after the first answer
        self._names_to_try: list[str] = []
        self._inputs = self._find_inputs(file, contract)
        self._same_dtype = len({spec.dtype for spec in self._inputs}) == 1
        classes = getattr(model, "classes_", None)
        self._has_probabilities = hasattr(model, "predict_proba") and isinstance(classes, np.ndarray)
        self._outputs = self._find_outputs(file)
        self.device = cpu_name()
        self.signature = Signature.of_model(self._inputs, self._outputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into memory.
        """
        rows = rows_in(inputs)
        try:
            arrays = self._compute(inputs)
        except MemoryError as error:
            raise failed_call(rows, one_line(error), out_of_memory=True) from error
        except Exception as error:  # an estimator may raise any error
            hint = f" ({self.notice})" if self.notice else (_GUESSED if self._guessed and not self._learnt else "")
            raise failed_call(rows, f"{one_line(error)}{hint}", out_of_memory=False) from error
        return {spec.name: as_served(array, spec, rows) for spec, array in zip(self._outputs, arrays, strict=True)}

    def _compute(self, inputs: Block) -> list[npt.NDArray[Any]]:
        try:
            arrays = self._call(inputs, self._names)
        except Exception as error:
            if not self._names_to_try:
                raise
            try:
                arrays = self._call(inputs, self._names_to_try)
            except Exception:  # noqa: BLE001 - an estimator may raise any error
                raise error from None
            self._names = self._names_to_try
        self._names_to_try = []
        return arrays

    def _call(self, inputs: Block, names: list[str]) -> list[npt.NDArray[Any]]:
        x = self._table(inputs, names)
        predicted = np.asarray(self._model.predict(x))
        return [predicted, self._model.predict_proba(x)] if self._has_probabilities else [predicted]

    def _table(self, inputs: Block, names: list[str]) -> Any:
        """Return the rows in the form that the estimator was fitted on, with or without names of columns."""
        columns = [_with_missing(inputs[spec.name], self._learnt.get(n)) for n, spec in enumerate(self._inputs)]
        if self._documents:
            return columns[0]
        if self._records:
            keys = [spec.name for spec in self._inputs]
            return [dict(zip(keys, row, strict=True)) for row in zip(*(one.tolist() for one in columns), strict=True)]
        if not names:
            return _side_by_side(columns)
        import pandas as pd

        if self._learnt or not self._same_dtype:
            typed = [_series(column, self._learnt.get(number)) for number, column in enumerate(columns)]
            return pd.DataFrame(dict(zip(names, typed, strict=True)))
        return pd.DataFrame(_side_by_side(columns), columns=names)

    def _find_inputs(self, file: Path, contract: FeatureContract | None) -> tuple[TensorSpec, ...]:
        if contract is not None:
            if self._records:
                return contract.fields
            return _listed_inputs(self._names, self._width or int(self._documents), contract)
        if self._names:
            text = {number for number, learnt in self._learnt.items() if learnt.is_text}
            return tuple(
                TensorSpec(name, DType.STRING if number in text else DType.FLOAT64)
                for number, name in enumerate(self._names)
            )
        if self._documents:
            return (TensorSpec(_ROWS, DType.STRING),)
        if not self._width:
            check_fitted(self._model, file)
            raise ModelError(f"{file} does not say how many features it takes: list them in features.json")
        if any(learnt.is_text for learnt in self._learnt.values()):
            raise ModelError(f"{file} takes text and knows no names of columns: list them in features.json")
        return (TensorSpec(_ROWS, DType.FLOAT64, (self._width,)),)

    def _find_outputs(self, file: Path) -> tuple[TensorSpec, ...]:
        if self._has_probabilities:
            label = _dtype(file, _LABEL, self._model.classes_)
            return (
                TensorSpec(_LABEL, label),
                TensorSpec(_PROBABILITIES, DType.FLOAT64, (len(self._model.classes_),)),
            )
        predicted = self._predicted_zeros()
        if predicted is None:  # it refuses made-up values: assume the shape of most estimators
            return (TensorSpec(_PREDICTION, DType.FLOAT64),)
        return (TensorSpec(_PREDICTION, _dtype(file, _PREDICTION, predicted), predicted.shape[1:]),)

    def _predicted_zeros(self) -> npt.NDArray[Any] | None:
        """Return the answer to a row of zeros; None if the model refuses it.

        A model that knows nothing of its columns may look them up by name. It gets names if it answers only with them.
        """
        if not (self._names or self._width or self._documents or self._records):
            self._names_to_try = [spec.name for spec in self._inputs]
        try:
            return plain_numbers(self._compute({spec.name: _zeros(spec) for spec in self._inputs})[0])
        except Exception:  # noqa: BLE001 - an estimator may raise any error
            return None


def _listed_inputs(names: list[str], width: int, contract: FeatureContract) -> tuple[TensorSpec, ...]:
    """Return the features of a contract in the model's order. `width`: 0 if it is unknown."""
    fields = {spec.name: spec for spec in contract.fields}
    if names:
        odd = next(iter(sorted(set(names) ^ set(fields))), None) or next((n for n in names if fields[n].shape), None)
        if odd:
            raise ContractError(
                f"feature {odd!r}: the model was fitted on the columns {', '.join(names[:20])}; list each of them "
                'once, as a single value (where a table calls one otherwise, its "column" says how)',
                field=odd,
            )
        return tuple(fields[name] for name in names)
    if width and contract.width != width:
        raise ContractError(f"features.json lists {contract.width} values but the model takes {width}: list them all")
    return contract.fields


def _side_by_side(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.column_stack([column.reshape(len(column), -1) for column in columns])


def _with_missing(values: npt.NDArray[Any], learnt: Learnt | None) -> npt.NDArray[Any]:
    """Return text with the model's missing value in place of None; other values unchanged."""
    if values.dtype != object or (learnt is not None and learnt.missing is None):
        return values
    missing = np.array([value is None for value in values.ravel()], dtype=bool).reshape(values.shape)
    if missing.any():
        values = values.copy()
        values[missing] = np.nan
    return values


def _series(values: npt.NDArray[Any], learnt: Learnt | None) -> Any:
    import pandas as pd

    if learnt is not None and learnt.categories is not None:
        categories = pd.Index(list(learnt.categories))
        return pd.Categorical.from_codes(categories.get_indexer(values), categories=categories)
    # pandas would turn None in a column of text into NaN
    return pd.Series(values, dtype=object) if learnt is not None and learnt.missing is None else values


def _dtype(file: Path, name: str, values: npt.NDArray[Any]) -> DType:
    return DType.STRING if values.dtype.kind in "OUST" else dtype_of(file, "output", name, values.dtype.name)


def _zeros(spec: TensorSpec) -> npt.NDArray[Any]:
    if spec.dtype is DType.STRING:
        return np.full((1, *spec.shape), "", dtype=object)
    return np.zeros((1, *spec.shape), dtype=spec.dtype.numpy)
