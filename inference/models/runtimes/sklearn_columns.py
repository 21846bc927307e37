"""Finds what an estimator has learnt of its columns: which are text or categories, and the value of a missing text.

Reads it from the steps of pipelines and column transformers, from HistGradientBoosting, and from the estimators of
LightGBM and XGBoost. Imports none of their libraries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import ModelError

#: attributes of estimators that pass their table on unchanged, to the estimator in it or to each of several
_INNER = ("best_estimator_", "regressor_", "calibrated_classifiers_", "estimators_", "estimator_", "estimator")
#: steps that do nothing
_NO_STEPS = (None, "passthrough")
#: mixins and classes of scikit-learn whose output has the same columns as their input
_KEEPS_COLUMNS = ("OneToOneFeatureMixin", "SimpleImputer", "KNNImputer", "IterativeImputer", "FunctionTransformer")

#: a position among the model's columns, and what a step has learnt of that column
LearntColumn = tuple[int, "Learnt"]


@dataclass(frozen=True)
class Learnt:
    """One column. `is_text`: its values are text. `missing`: the value of a missing text, None or NaN.

    `categories`: all its values in training, if the model takes a pandas category; None otherwise.
    """

    is_text: bool
    missing: Any = math.nan
    categories: tuple[Any, ...] | None = None


def learnt_columns(model: Any, width: int) -> dict[int, Learnt]:
    """Return what a model has learnt of its columns, by position. Leaves out columns of plain numbers.

    The first step with a column decides the value of a missing text.

    Raises:
        ModelError: the model was fitted on pandas categories, and does not name them.
    """
    found: dict[int, Learnt] = {}
    for position, learnt in _walk(model, list(range(width))):
        known = found.get(position)
        found[position] = (
            learnt if known is None else Learnt(known.is_text or learnt.is_text, known.missing, learnt.categories)
        )
    return {position: learnt for position, learnt in found.items() if learnt.is_text or learnt.categories}


def fitted_columns(model: Any) -> tuple[list[str], int]:
    """Return the names and the number of the columns that a model was fitted on; [] and 0 if unknown.

    If a pipeline or a search does not know them, a step or an estimator inside it may.
    """
    if takes_records(model):
        return _keys(first_step(model)), 0
    names = getattr(model, "feature_names_in_", None)
    width = getattr(model, "n_features_in_", None)
    if names is None and width is None:
        inside = _inside(model)
        return ([], 0) if inside is None else fitted_columns(inside)
    found = [] if names is None else [str(name) for name in names]
    return found, len(found) or int(width or 0)


def first_step(model: Any) -> Any:
    """Return the step that gets a model's rows first, unchanged."""
    inside = _inside(model)
    return model if inside is None else first_step(inside)


def takes_documents(model: Any) -> bool:
    """Tell whether a model takes one text a row, not a table: its first step is a vectoriser of texts."""
    return hasattr(first_step(model), "build_analyzer")


def takes_records(model: Any) -> bool:
    """Tell whether a model takes a dict a row, as a DictVectorizer and mostly a FeatureHasher do."""
    first = first_step(model)
    classes = {one.__name__ for one in type(first).__mro__}
    return "DictVectorizer" in classes or ("FeatureHasher" in classes and first.input_type == "dict")


def _inside(step: Any) -> Any:
    """Return the step or estimator inside another one that gets its rows unchanged; None for none."""
    steps = [one for _, one in getattr(step, "steps", None) or getattr(step, "transformer_list", None) or ()]
    return next((one for one in steps if one not in _NO_STEPS), None) if steps else _inner(step)


def _keys(vectoriser: Any) -> list[str]:
    """Return the keys of the dicts that a DictVectorizer was fitted on. It stores a text as "key=text"."""
    names = getattr(vectoriser, "feature_names_", ())
    return list(dict.fromkeys(name.partition(vectoriser.separator)[0] for name in names))


def _walk(step: Any, at: list[int]) -> Iterator[LearntColumn]:
    """Yield what a step, and the steps inside it, have learnt. `at`: the model's column for each column of the step."""
    if hasattr(step, "steps"):
        yield from _walk_pipeline([one for _, one in step.steps if one not in _NO_STEPS], at)
    elif hasattr(step, "transformers_"):
        names = [str(name) for name in getattr(step, "feature_names_in_", ())]
        for _, one, columns in step.transformers_:
            if not isinstance(one, str):  # "drop", "passthrough"
                yield from _walk(one, [at[index] for index in _indices(columns, names, len(at))])
    elif hasattr(step, "transformer_list"):
        for _, one in step.transformer_list:
            yield from _walk(one, at)
    elif (inner := _inner(step)) is not None:
        yield from _walk(inner, at)
    else:
        yield from _learnt_by(step, at)


def _walk_pipeline(steps: list[Any], at: list[int]) -> Iterator[LearntColumn]:
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        yield from _walk(step, at)
        keeps = {one.__name__ for one in type(step).__mro__}.intersection(_KEEPS_COLUMNS)
        if not keeps or getattr(following, "n_features_in_", len(at)) != len(at):
            return


def _inner(step: Any) -> Any:
    for name in _INNER:
        inner = getattr(step, name, None)
        # a list, as of voting and stacking: each estimator gets the whole table
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if hasattr(inner, "predict") or hasattr(inner, "estimator"):
            return inner
    return None


def _learnt_by(step: Any, at: list[int]) -> Iterator[LearntColumn]:
    if hasattr(step, "build_analyzer"):
        yield from ((position, Learnt(is_text=True)) for position in at)
    elif hasattr(step, "feature_names_") and hasattr(step, "separator"):  # a DictVectorizer
        texts = {name.partition(step.separator)[0] for name in step.feature_names_ if step.separator in name}
        yield from ((position, Learnt(name in texts)) for position, name in zip(at, _keys(step), strict=False))
    elif getattr(step, "_preprocessor", None) is not None:  # HistGradientBoosting's own
        yield from _walk(step._preprocessor, at)
    elif hasattr(step, "categories_"):
        yield from ((position, _of_values(known)) for position, known in zip(at, step.categories_, strict=False))
    elif hasattr(step, "statistics_") and hasattr(step, "missing_values"):
        missing = None if step.missing_values is None else math.nan
        filled = [step.fill_value] * len(at) if getattr(step, "strategy", "") == "constant" else step.statistics_
        are_texts = (isinstance(value, str) for value in filled)
        yield from ((position, Learnt(text, missing)) for position, text in zip(at, are_texts, strict=False))
    elif hasattr(step, "booster_") or hasattr(step, "get_booster"):
        of_booster = _of_lightgbm(step.booster_) if hasattr(step, "booster_") else _of_xgboost(step.get_booster())
        for index, categories in of_booster.items():
            if index < len(at):
                yield at[index], Learnt(any(isinstance(one, str) for one in categories), math.nan, tuple(categories))


def _of_values(known: Any) -> Learnt:
    values = list(known)
    return Learnt(any(isinstance(one, str) for one in values), None if None in values else math.nan)


def _of_lightgbm(booster: Any) -> dict[int, Sequence[Any]]:
    """Return the categories of each pandas category, by position."""
    known = getattr(booster, "pandas_categorical", None)
    if not known:
        return {}
    columns = booster.params.get("categorical_column", ())
    if len(columns) != len(known):
        raise _unknown_categories("LightGBM", "fit it again with the categories as columns of dtype category only")
    return dict(zip(sorted(columns), known, strict=True))


def _of_xgboost(booster: Any) -> dict[int, Sequence[Any]]:
    """Return the categories of each pandas category, by position. XGBoost stores them since 3.1."""
    types = booster.feature_types or []
    if "c" not in types:
        return {}
    known: Any = booster.get_categories(export_to_arrow=True).to_arrow() if hasattr(booster, "get_categories") else None
    if not known:
        raise _unknown_categories("XGBoost", "fit it again with XGBoost 3.1 or newer")
    return {index: values.to_pylist() for index, (_, values) in enumerate(known) if values is not None}


def _unknown_categories(library: str, fix: str) -> ModelError:
    return ModelError(
        f"the model was fitted on pandas categories, and its file does not say which values they had ({library}): "
        f"{fix}, or encode them in a pipeline (sklearn.preprocessing.OrdinalEncoder)"
    )


def _indices(columns: Any, names: list[str], width: int) -> list[int]:
    """Return the positions of a column transformer's columns: names, positions, a slice of either, or a mask."""
    if isinstance(columns, slice):
        start, stop = columns.start, columns.stop
        if isinstance(start, str) or isinstance(stop, str):  # a slice of names includes its end, as in pandas
            start = names.index(start) if start is not None else None
            stop = names.index(stop) + 1 if stop is not None else None
        return list(range(width))[slice(start, stop, columns.step)]
    listed = [columns] if isinstance(columns, str | int) else list(np.asarray(columns).tolist())
    if listed and all(isinstance(one, bool) for one in listed):
        return [index for index, chosen in enumerate(listed) if chosen]
    return [names.index(one) if isinstance(one, str) else one % width for one in listed]
