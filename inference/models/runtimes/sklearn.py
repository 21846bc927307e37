"""scikit-learn models from skops files, or from pickles where they are allowed. The only file that imports sklearn.

Its libraries are imported where they are used: skops takes two seconds, which a pickle does not need.
"""

from __future__ import annotations

import pickle
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ContractError, ModelError, ModelOutOfMemory, PredictionFailed
from inference.features import FeatureContract
from inference.features.user_code import look_in
from inference.models.runtimes.devices import cpu_name
from inference.models.runtimes.runtime import LoadOptions, one_line
from inference.models.runtimes.sklearn_columns import Learnt, learnt_columns, takes_documents
from inference.models.runtimes.tensors import as_served, dtype_of
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

_MOST_SHOWN = 5
#: parts of scikit-learn that are no part of a model
_NEVER_TRUSTED = frozenset({"tests", "_testing", "externals", "conftest"})
#: the input of a model that knows neither names nor a feature contract
_ROWS = "x"
#: libraries whose Booster is not what can be served, and what is
_ESTIMATORS = {"lightgbm": "LGBMClassifier or LGBMRegressor", "xgboost": "XGBClassifier or XGBRegressor"}
#: how a module that lacks a function or class is told, by pickle and by Python
_LACKS = re.compile(r"attribute '(\w+)' on (<module .*>)|module '(.+)' has no attribute '(\w+)'")
_GUESSED = " (if it takes text, say which of its columns are text: list them all in features.json)"
_PREDICTION, _LABEL, _PROBABILITIES = "prediction", "label", "probabilities"


def load(file: Path, options: LoadOptions, contract: FeatureContract | None) -> SklearnRuntime:
    """Load the estimator in `file`; a skops file's types must be trusted ones unless code is allowed."""
    read = _from_skops if file.suffix == ".skops" else _from_pickle
    look_in(options.code_folder if options.allow_code else None)
    try:
        model = read(file, options.allow_code)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{file} {_why_not(error)}", field="path") from error
    _check_estimator(model, file)
    return SklearnRuntime(model, file, contract)


class SklearnRuntime:
    """An estimator in memory. Inputs are its features, one by one; a classifier with probabilities gives both.

    It knows its columns' names when it was fitted on a table; their dtypes, and the names else, stand in the contract.
    """

    def __init__(self, model: Any, file: Path, contract: FeatureContract | None) -> None:
        self._model = model
        self._names = [str(name) for name in getattr(model, "feature_names_in_", [])]
        self._documents = takes_documents(model)
        self._guessed = contract is None and bool(self._names)
        self._learnt = learnt_columns(model, len(self._names) or int(getattr(model, "n_features_in_", 0)))
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
            raise ModelOutOfMemory(f"{rows} rows do not fit into memory: {one_line(error)}") from error
        except Exception as error:  # an estimator raises whatever its author liked
            hint = _GUESSED if self._guessed and not self._learnt else ""
            raise PredictionFailed(f"the model failed: {one_line(error)}{hint}") from error
        return {spec.name: as_served(array, spec, rows) for spec, array in zip(self._outputs, arrays, strict=True)}

    def _compute(self, inputs: Block) -> list[npt.NDArray[Any]]:
        x = self._table(inputs)
        predicted = np.asarray(self._model.predict(x))
        return [predicted, self._model.predict_proba(x)] if self._has_probabilities else [predicted]

    def _table(self, inputs: Block) -> Any:
        """Return the rows as the estimator was fitted: with its columns' names, or without."""
        columns = [_with_missing(inputs[spec.name], self._learnt.get(n)) for n, spec in enumerate(self._inputs)]
        if self._documents:
            return columns[0]
        if not self._names:
            return _side_by_side(columns)
        import pandas as pd

        if self._learnt or not self._same_dtype:
            typed = [_series(column, self._learnt.get(number)) for number, column in enumerate(columns)]
            return pd.DataFrame(dict(zip(self._names, typed, strict=True)))
        return pd.DataFrame(_side_by_side(columns), columns=self._names)

    def _find_inputs(self, file: Path, contract: FeatureContract | None) -> tuple[TensorSpec, ...]:
        if contract is not None:
            return _listed_inputs(self._model, self._names, contract)
        if self._names:
            text = {number for number, learnt in self._learnt.items() if learnt.is_text}
            return tuple(
                TensorSpec(name, DType.STRING if number in text else DType.FLOAT64)
                for number, name in enumerate(self._names)
            )
        if self._documents:
            return (TensorSpec(_ROWS, DType.STRING),)
        width = int(getattr(self._model, "n_features_in_", 0))
        if not width:
            raise ModelError(f"{file} does not say how many features it takes: list them in features.json")
        if any(learnt.is_text for learnt in self._learnt.values()):
            raise ModelError(f"{file} takes text and knows no names of columns: list them in features.json")
        return (TensorSpec(_ROWS, DType.FLOAT64, (width,)),)

    def _find_outputs(self, file: Path) -> tuple[TensorSpec, ...]:
        if self._has_probabilities:
            label = _dtype(file, _LABEL, self._model.classes_)
            return (
                TensorSpec(_LABEL, label),
                TensorSpec(_PROBABILITIES, DType.FLOAT64, (len(self._model.classes_),)),
            )
        predicted = self._predicted_zeros()
        if predicted is None:  # made-up values may be refused; the shape that most estimators give is left
            return (TensorSpec(_PREDICTION, DType.FLOAT64),)
        return (TensorSpec(_PREDICTION, _dtype(file, _PREDICTION, predicted), predicted.shape[1:]),)

    def _predicted_zeros(self) -> npt.NDArray[Any] | None:
        """Return what a row of zeros is answered with; None when it is refused.

        A model that tells nothing of its columns may look them up by name: it is given names if it answers those only.
        """
        zeros = {spec.name: _zeros(spec) for spec in self._inputs}
        unnamed = not self._names and not hasattr(self._model, "n_features_in_") and not self._documents
        for names in [self._names, [spec.name for spec in self._inputs]][: 1 + unnamed]:
            self._names = names
            try:
                return self._compute(zeros)[0]
            except Exception:  # noqa: BLE001, S112 - an estimator raises whatever its author liked
                continue
        self._names = [] if unnamed else self._names
        return None


def _from_skops(file: Path, allow_code: bool) -> Any:
    import skops.io

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
        import joblib

        return joblib.load(file)
    with file.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301 - only by the operator's `allow_code`


def _why_not(error: Exception) -> str:
    """Return why a file cannot be loaded, and the way out."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"needs the module {error.name!r}, which is not installed here: put it beside forecache.toml if it is your "
            "own, else install what it is part of where workers run"
        )
    lacks = _LACKS.search(str(error)) if isinstance(error, AttributeError) else None
    # where a notebook says __main__, the process that loads its pickle has a module of its own
    if lacks and (lacks[2] or lacks[3]) in (repr(sys.modules["__main__"]), "__main__"):
        return (
            f"needs {lacks[1] or lacks[4]!r}, which was defined in a notebook or script (__main__) and is not in the "
            "file: move it into a module beside forecache.toml, import it from there, and save the model again"
        )
    return f"cannot be loaded as a scikit-learn model: {one_line(error)}"


def _check_estimator(model: Any, file: Path) -> None:
    """Refuse what cannot predict, and what predicts from a type of its library's own instead of a table."""
    type_ = type(model)
    library = type_.__module__.partition(".")[0]
    if type_.__name__ == "Booster" and library in _ESTIMATORS:
        raise ModelError(
            f"{file} holds a {library} Booster, which is no scikit-learn estimator: save the {_ESTIMATORS[library]} "
            "around it, or convert it to ONNX (onnxmltools)",
            field="path",
        )
    if isinstance(model, type):
        raise ModelError(f"{file} holds the class {model.__name__} itself: save a fitted object of it", field="path")
    if not hasattr(model, "predict"):
        raise ModelError(
            f"{file} holds a {type_.__name__}, which has no predict method{_predictor_in(model)}", field="path"
        )


def _predictor_in(model: Any) -> str:
    """Return which part of a dict or list could be saved instead, in words; "" for none."""
    parts = model.items() if isinstance(model, dict) else enumerate(model) if isinstance(model, list | tuple) else ()
    inside = next((key for key, part in parts if hasattr(part, "predict")), None)
    return "" if inside is None else f": save [{inside!r}] of it alone, which is a {type(model[inside]).__name__}"


def _listed_inputs(model: Any, names: list[str], contract: FeatureContract) -> tuple[TensorSpec, ...]:
    """Return the features of a contract in the order in which the model takes them."""
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
    width = int(getattr(model, "n_features_in_", 0)) or (1 if takes_documents(model) else None)
    if width is not None and contract.width != width:
        raise ContractError(f"features.json lists {contract.width} values but the model takes {width}: list them all")
    return contract.fields


def _side_by_side(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.column_stack([column.reshape(len(column), -1) for column in columns])


def _with_missing(values: npt.NDArray[Any], learnt: Learnt | None) -> npt.NDArray[Any]:
    """Return text with what the model takes for missing in place of None; anything else as it is."""
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
    # pandas would take None in a column of text for NaN
    return pd.Series(values, dtype=object) if learnt is not None and learnt.missing is None else values


def _dtype(file: Path, name: str, values: npt.NDArray[Any]) -> DType:
    return DType.STRING if values.dtype.kind in "OUST" else dtype_of(file, "output", name, values.dtype.name)


def _zeros(spec: TensorSpec) -> npt.NDArray[Any]:
    if spec.dtype is DType.STRING:
        return np.full((1, *spec.shape), "", dtype=object)
    return np.zeros((1, *spec.shape), dtype=spec.dtype.numpy)
