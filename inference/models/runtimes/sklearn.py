"""scikit-learn models from skops files, or from pickles where they are allowed. The only file that imports sklearn."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import skops.io
from sklearn.base import is_classifier

from inference.errors import ContractError, ModelError, ModelOutOfMemory, PredictionFailed
from inference.features import FeatureContract
from inference.models.runtimes.devices import cpu_name
from inference.models.runtimes.runtime import LoadOptions, one_line
from inference.models.runtimes.tensors import as_served, dtype_of
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

_MOST_SHOWN = 5
#: parts of scikit-learn that are no part of a model
_NEVER_TRUSTED = frozenset({"tests", "_testing", "externals", "conftest"})
#: the input of a model that knows neither names nor a feature contract
_ROWS = "x"
_PREDICTION, _LABEL, _PROBABILITIES = "prediction", "label", "probabilities"


def load(file: Path, options: LoadOptions, contract: FeatureContract | None) -> SklearnRuntime:
    """Load the estimator in `file`; a skops file's types must be trusted ones unless code is allowed."""
    read = _from_skops if file.suffix == ".skops" else _from_pickle
    try:
        model = read(file, options.allow_code)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{file} cannot be loaded as a scikit-learn model: {one_line(error)}", field="path") from error
    if not hasattr(model, "predict"):
        raise ModelError(f"{file} holds a {type(model).__name__}, which has no predict method", field="path")
    return SklearnRuntime(model, file, contract)


class SklearnRuntime:
    """An estimator in memory. Inputs are its features, one by one; a classifier with probabilities gives both.

    It knows its columns' names when it was fitted on a table; their dtypes, and the names else, stand in the contract.
    """

    def __init__(self, model: Any, file: Path, contract: FeatureContract | None) -> None:
        self._model = model
        self._names = [str(name) for name in getattr(model, "feature_names_in_", [])]
        self._inputs = _inputs(model, self._names, file, contract)
        self._same_dtype = len({spec.dtype for spec in self._inputs}) == 1
        self._has_probabilities = (
            is_classifier(model) and hasattr(model, "predict_proba") and isinstance(model.classes_, np.ndarray)
        )
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
            raise ModelOutOfMemory(f"{rows} rows do not fit into memory: {one_line(error)}") from error
        except Exception as error:  # an estimator raises whatever its author liked
            raise PredictionFailed(f"the model failed: {one_line(error)}") from error
        return {spec.name: as_served(array, spec, rows) for spec, array in zip(self._outputs, arrays, strict=True)}

    def _compute(self, inputs: Block) -> list[npt.NDArray[Any]]:
        x = self._table(inputs)
        predicted = np.asarray(self._model.predict(x))
        return [predicted, self._model.predict_proba(x)] if self._has_probabilities else [predicted]

    def _table(self, inputs: Block) -> Any:
        """Return the rows as the estimator was fitted: with its columns' names, or without."""
        columns = [inputs[spec.name] for spec in self._inputs]
        if self._names and not self._same_dtype:
            return pd.DataFrame(dict(zip(self._names, columns, strict=True)))
        flat = np.column_stack([column.reshape(len(column), -1) for column in columns])
        return pd.DataFrame(flat, columns=self._names) if self._names else flat

    def _find_outputs(self, file: Path) -> tuple[TensorSpec, ...]:
        if self._has_probabilities:
            label = _dtype(file, _LABEL, self._model.classes_)
            return (
                TensorSpec(_LABEL, label),
                TensorSpec(_PROBABILITIES, DType.FLOAT64, (len(self._model.classes_),)),
            )
        try:
            predicted = self._compute({spec.name: _zeros(spec) for spec in self._inputs})[0]
        except Exception:  # noqa: BLE001 - made-up values may be refused; the shape that most estimators give is left
            return (TensorSpec(_PREDICTION, DType.FLOAT64),)
        return (TensorSpec(_PREDICTION, _dtype(file, _PREDICTION, predicted), predicted.shape[1:]),)


def _from_skops(file: Path, allow_code: bool) -> Any:
    unvouched = skops.io.get_untrusted_types(file=file)
    unknown = [name for name in unvouched if not _is_sklearns_own(name)]
    if unknown and not allow_code:
        shown = ", ".join(unknown[:_MOST_SHOWN])
        raise ModelError(
            f"{file} holds types that are not known to be safe: {shown}; build the model of scikit-learn's own, or set "
            "allow_code = true under the model's settings if you trust who wrote it",
            field="allow_code",
        )
    return skops.io.load(file, trusted=unvouched)


def _is_sklearns_own(name: str) -> bool:
    """Tell whether a type that skops vouches for no more than for any other is a class that scikit-learn defines.

    Its estimators skops trusts, but not what they are made of: nodes of trees, losses, neighbours. Such a class is made
    without a call of the author's choice. A function is another matter: an estimator may call it.
    """
    if name == "numpy.dtype":
        return True
    module, _, own_name = name.rpartition(".")
    parts = module.split(".")
    if parts[0] != "sklearn" or not _NEVER_TRUSTED.isdisjoint(parts):
        return False
    try:
        found = getattr(import_module(module), own_name, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__ == module


def _from_pickle(file: Path, _: bool) -> Any:
    """Load a pickle; `load_runtime` has made sure that it is allowed."""
    if file.suffix == ".joblib":
        return joblib.load(file)
    with file.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301 - only by the operator's `allow_code`


def _inputs(model: Any, names: list[str], file: Path, contract: FeatureContract | None) -> tuple[TensorSpec, ...]:
    width = int(getattr(model, "n_features_in_", 0)) or None
    if contract is None:
        if names:
            text = set(_text_columns(model))
            return tuple(TensorSpec(name, DType.STRING if name in text else DType.FLOAT64) for name in names)
        if width is None:
            raise ModelError(f"{file} does not say how many features it takes: list them in features.json")
        return (TensorSpec(_ROWS, DType.FLOAT64, (width,)),)
    fields = {spec.name: spec for spec in contract.fields}
    if names:
        odd = next(iter(sorted(set(names) ^ set(fields))), None) or next((n for n in names if fields[n].shape), None)
        if odd:
            raise ContractError(
                f"feature {odd!r}: the model was fitted on the columns {', '.join(names[:20])}; "
                "list each of them once, as a single value",
                field=odd,
            )
        return tuple(fields[name] for name in names)
    if width is not None and contract.width != width:
        raise ContractError(f"features.json lists {contract.width} values but the model takes {width}: list them all")
    return contract.fields


def _text_columns(model: Any) -> Iterator[str]:
    """Give the columns whose known categories are text, as far as a column transformer at the beginning tells."""
    first = model.steps[0][1] if hasattr(model, "steps") else model
    for _, transformer, columns in getattr(first, "transformers_", ()):
        names = [columns] if isinstance(columns, str) else columns
        if not isinstance(names, Sequence):  # a slice or a mask
            continue
        for step in [one for _, one in getattr(transformer, "steps", [("", transformer)])]:
            known: Sequence[Any] = getattr(step, "categories_", ())
            yield from (
                str(name) for name, categories in zip(names, known, strict=False) if categories.dtype.kind in "OUT"
            )


def _dtype(file: Path, name: str, values: npt.NDArray[Any]) -> DType:
    return DType.STRING if values.dtype.kind in "OUST" else dtype_of(file, "output", name, values.dtype.name)


def _zeros(spec: TensorSpec) -> npt.NDArray[Any]:
    if spec.dtype is DType.STRING:
        return np.full((1, *spec.shape), "", dtype=object)
    return np.zeros((1, *spec.shape), dtype=spec.dtype.numpy)
