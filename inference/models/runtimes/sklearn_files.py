"""Reads estimators from skops files and pickles. An error says in one line why one cannot be read.

Imports libraries late: skops takes two seconds, and a pickle does not need it.
"""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import numpy as np

from inference.errors import ModelError
from inference.features.functions import look_in
from inference.models.runtimes.runtime import LoadOptions, one_line

_MOST_SHOWN = 5
#: modules of scikit-learn that no model needs
_NEVER_TRUSTED = frozenset({"tests", "_testing", "externals", "conftest", "datasets"})
#: types whose values contain no other object
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, np.generic, ModuleType)
#: libraries whose Booster cannot be served → their estimators, which can
_ESTIMATORS = {"lightgbm": "LGBMClassifier or LGBMRegressor", "xgboost": "XGBClassifier or XGBRegressor"}
#: the messages of pickle and of Python about a module without a function or class
_LACKS = re.compile(r"attribute '(\w+)' on (<module '([\w.]+)'.*>)|module '(.+)' has no attribute '(\w+)'")


@dataclass(frozen=True)
class Estimator:
    """The estimator in a file. `remark`: that another version of scikit-learn saved it, in words; "" for the same."""

    model: Any
    remark: str = ""


def read_estimator(file: Path, options: LoadOptions) -> Estimator:
    """Return the estimator in a file. Unless code is allowed, all types in a skops file must be trusted.

    Raises:
        ModelError: the file cannot be loaded, or holds no estimator that predicts.
    """
    look_in(options.code_folder if options.allow_code else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = _from_skops(file, options.allow_code) if file.suffix == ".skops" else _from_pickle(file)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{file} {_why_not(error)}{f' ({remark})' if (remark := _remark(caught)) else ''}", field="path"
            ) from error
    for other in (one for one in caught if not _tells_versions(one)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    _check_estimator(model, file)
    if not options.allow_code:
        _check_opens_no_files(model, file)
    return Estimator(model, _remark(caught))


def check_fitted(model: Any, file: Path) -> None:
    """Refuse an estimator that is not fitted.

    Raises:
        ModelError: it is not fitted.
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ModelError(
            f"{file} holds a {type(model).__name__} that is not fitted: save it after fit", field="path"
        ) from error
    except TypeError:
        return  # not an estimator of scikit-learn


def _remark(caught: list[warnings.WarningMessage]) -> str:
    """Return that another version saved an estimator, from scikit-learn's warning; "" if there is none."""
    odd: Any = next((one.message for one in caught if _tells_versions(one)), None)
    if odd is None:
        return ""
    saved, here = odd.original_sklearn_version, odd.current_sklearn_version
    return (
        f"it was saved by scikit-learn {saved}, and {here} is installed here: install {saved} where workers run, or "
        f"save it again with {here}"
    )


def _tells_versions(caught: warnings.WarningMessage) -> bool:
    return caught.category.__name__ == "InconsistentVersionWarning"


def _from_pickle(file: Path) -> Any:
    """Load a pickle. `load_runtime` has checked that it is allowed.

    joblib also reads ordinary and compressed pickles. Many people name its own files .pkl.
    """
    import joblib

    return joblib.load(file)


def _from_skops(file: Path, allow_code: bool) -> Any:
    import skops.io

    untrusted = skops.io.get_untrusted_types(file=file)
    unknown = [name for name in untrusted if not _is_sklearns_own(name)]
    if unknown and not allow_code:
        shown = ", ".join(unknown[:_MOST_SHOWN])
        raise ModelError(
            f"{file} holds types that are not known to be safe: {shown}; build the model of scikit-learn's own, or set "
            "allow_code = true under the model's settings if you trust who wrote it",
            field="allow_code",
        )
    return skops.io.load(file, trusted=untrusted)


def _is_sklearns_own(name: str) -> bool:
    """Tell whether a type that skops does not trust is a class of scikit-learn itself.

    skops trusts estimators, but not their inner classes, such as nodes of trees, losses and neighbours. To create such
    an object calls nothing of the author's choice. A function is different: an estimator may call it.
    """
    if name == "numpy.dtype":
        return True
    module, _, class_name = name.rpartition(".")
    parts = module.split(".")
    if parts[0] != "sklearn" or not _NEVER_TRUSTED.isdisjoint(parts):
        return False
    try:
        found = getattr(import_module(module), class_name, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__ == module


def _why_not(error: Exception) -> str:
    """Return why a file cannot be loaded, and the fix."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        if "." in error.name and _is_installed(error.name):
            return _of_another_version(error.name)
        return (
            f"needs the module {error.name!r}, which is not installed here: put it beside forecache.toml if it is your "
            "own, else install what it is part of where workers run"
        )
    lacks = _LACKS.search(str(error)) if isinstance(error, AttributeError) else None
    # a pickle of a notebook names __main__, which is another module in this process
    if lacks and (lacks[2] or lacks[4]) in (repr(sys.modules["__main__"]), "__main__"):
        return (
            f"needs {lacks[1] or lacks[5]!r}, which was defined in a notebook or script (__main__) and is not in the "
            "file: move it into a module beside forecache.toml, import it from there, and save the model again"
        )
    if lacks and _is_installed(lacks[3] or lacks[4]):
        return _of_another_version(f"{lacks[3] or lacks[4]}.{lacks[1] or lacks[5]}")
    damaged = isinstance(error, pickle.UnpicklingError | EOFError | LookupError)
    message = f"it is damaged, cut off, or no pickle ({type(error).__name__}: {one_line(error)})"
    return f"cannot be loaded as a scikit-learn model: {message if damaged else one_line(error)}"


def _is_installed(module: str) -> bool:
    root = module.partition(".")[0]
    return root in sys.modules or find_spec(root) is not None


def _of_another_version(name: str) -> str:
    root = name.partition(".")[0]
    version = getattr(sys.modules.get(root), "__version__", "")
    installed = f"the {root} {version} that is installed here" if version else f"the {root} here"
    return (
        f"needs {name!r}, which {installed} does not have: it was saved with another version of it; install that one "
        "where workers run, or save the model again with this one"
    )


def _check_estimator(model: Any, file: Path) -> None:
    """Refuse an object that cannot predict, and one that predicts from its library's own type in place of a table."""
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


def _check_opens_no_files(model: Any, file: Path) -> None:
    """Refuse a vectoriser, at any depth, that takes a text for the name of a file and reads that."""
    for part in _parts_of(model):
        # "filename" or "file"; also an object that equals one, such as an array of one text
        if hasattr(part, "build_analyzer") and not (type(part.input) is str and part.input == "content"):
            raise ModelError(
                f"{file}: its {type(part).__name__} has input={part.input!r}, so requests could read files of this "
                'machine: save it with input="content", or set allow_code = true under [models.NAME] if you trust '
                "whoever sends requests",
                field="allow_code",
            )


def _parts_of(model: Any) -> Iterator[Any]:
    """Yield a model and each object inside it, once."""
    left = [model]
    seen: dict[int, Any] = {}  # holds the objects, so that no other gets the id of one
    while left:
        part = left.pop()
        if isinstance(part, _PLAIN) or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, dict):
            left.extend([*part.keys(), *part.values()])
        elif isinstance(part, list | tuple | set | frozenset):
            left.extend(part)
        elif isinstance(part, np.ndarray):
            left.extend(part.ravel() if part.dtype == object else ())
        elif isinstance(part, MethodType):
            left.append(part.__self__)
        elif isinstance(part, partial):
            left.extend([part.func, part.args, part.keywords])
        else:
            yield part
            left.append(getattr(part, "__dict__", None))


def _predictor_in(model: Any) -> str:
    """Return the part of a dict or list that could be saved instead, in words; "" for none."""
    parts = dict(
        model.items() if isinstance(model, dict) else enumerate(model) if isinstance(model, list | tuple) else ()
    )
    inside = next((key for key, part in parts.items() if hasattr(part, "predict")), None)
    if inside is None:
        return ""
    message = f": save [{inside!r}] of it alone, which is a {type(parts[inside]).__name__}"
    first = next((key for key, part in parts.items() if key != inside and hasattr(part, "transform")), None)
    if first is None:
        return message
    before = type(parts[first]).__name__
    return f"{message}; if rows pass the {before} first, save make_pipeline([{first!r}], [{inside!r}])"
