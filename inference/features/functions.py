"""Features that functions compute when they are needed, the same way for runs and for requests.

The functions are the user's, or one of those that read the clock. Python looks for their modules in the usual places,
then in the folder of the deployment.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from datetime import datetime
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from inference.clock import to_datetime
from inference.errors import FunctionFailed, ModelError
from inference.features.columns import Values, column_values, type_problem
from inference.features.contract import FeatureContract
from inference.features.feature import Feature
from inference.features.groups import FeatureGroup, GroupSource
from inference.logs import get_logger
from inference.schema import Block, rows_in
from inference.wording import counted

if TYPE_CHECKING:
    import pandas as pd

log = get_logger(__name__)

#: takes rows of features by name, and the time; returns the group's features by name, in as many rows
FeatureFunction = Callable[["pd.DataFrame", datetime], "pd.DataFrame"]

_MONDAY_TO_FRIDAY = 5


class _Ready(NamedTuple):
    group: FeatureGroup
    features: tuple[Feature, ...]
    zone: ZoneInfo


class FeatureFunctions:
    """The function groups of a contract. Imports a function at its first call, or in `import_all`.

    `folder`: the folder of modules that Python does not find by itself; None for none.
    """

    def __init__(self, contract: FeatureContract, folder: Path | None = None) -> None:
        self._groups = [
            _Ready(group, contract.features_of(group.name), ZoneInfo(group.timezone or "UTC"))
            for group in contract.groups_from(GroupSource.FUNCTION)
        ]
        self._folder = folder
        self._functions: dict[str, FeatureFunction] = {}

    def import_all(self) -> None:
        """Import every function.

        Raises:
            ModelError: it cannot be imported, or is no function; names the group.
        """
        for ready in self._groups:
            self._function(ready)

    def compute(self, block: Block, at: float, wanted: Collection[str]) -> dict[str, Values]:
        """Return the features of each function that has a `wanted` one.

        `block`: the other features of complete rows; each function gets a copy. `at`: epoch seconds; a function gets
        it as an aware time in the zone of its group.

        Raises:
            FunctionFailed: a function raised, or did not return its group's features for each row.
            ModelError: a function cannot be imported.
        """
        import pandas as pd  # the API has this module too, and no use for it

        values: dict[str, Values] = {}
        for ready in self._groups:
            if not any(feature.name in wanted for feature in ready.features):
                continue
            function = self._function(ready)
            frame = pd.DataFrame({name: _column(array) for name, array in block.items()}, index=range(rows_in(block)))
            try:
                result = function(frame, to_datetime(at).astimezone(ready.zone))
            except Exception as error:
                log.exception("features.function_failed", group=ready.group.name, function=ready.group.function)
                raise _failed(ready, f"raised {type(error).__name__}") from error
            values |= _values(ready, result, rows_in(block))
        return values

    def _function(self, ready: _Ready) -> FeatureFunction:
        name = ready.group.name
        if name not in self._functions:
            self._functions[name] = (
                _imported(ready.group, self._folder) if ready.group.runs_code else _clock_function(ready)
            )
        return self._functions[name]


def check_code_allowed(contract: FeatureContract, *, allow_code: bool) -> None:
    """Refuse a contract that names the user's functions, unless the settings allow that. Imports nothing.

    Raises:
        ModelError: names the group and says how to allow it.
    """
    for group in contract.groups:
        if group.runs_code and not allow_code:
            raise ModelError(
                f"features.json: group {group.name!r} runs code ({group.function}): set allow_code = true under "
                "[models.NAME] if you trust everyone who can write it",
                field="allow_code",
            )


def _imported(group: FeatureGroup, folder: Path | None) -> FeatureFunction:
    module_name, _, name = str(group.function).partition(":")
    try:
        function = getattr(import_module(module_name, folder), name, None)
    except Exception as error:  # a module may raise anything while it is imported
        why = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"features.json: group {group.name!r}: {group.function} cannot be imported: {why}", field=group.name
        ) from error
    if not callable(function):
        raise ModelError(
            f"features.json: group {group.name!r}: module {module_name!r} has no function {name!r}", field=group.name
        )
    return function  # type: ignore[no-any-return]  # each call checks its result


def _clock_function(ready: _Ready) -> FeatureFunction:
    import pandas as pd

    name = ready.features[0].name
    of_instant: dict[str, Callable[[datetime], int]] = {
        "hour_of_day": lambda at: at.hour,
        "day_of_week": lambda at: at.weekday(),
        "weekend": lambda at: int(at.weekday() >= _MONDAY_TO_FRIDAY),
    }
    value = of_instant[str(ready.group.function)]
    return lambda frame, at: pd.DataFrame({name: np.full(len(frame), value(at))})


def _column(array: Any) -> Any:
    return list(array) if array.ndim > 1 else array.copy()


def _values(ready: _Ready, result: Any, rows: int) -> dict[str, Values]:
    import pandas as pd

    names = [feature.name for feature in ready.features]
    if not isinstance(result, pd.DataFrame):
        raise _failed(ready, f"returned {type(result).__name__}, not a pandas.DataFrame")
    if len(result) != rows:
        raise _failed(ready, f"returned {counted(len(result), 'row')} for {rows}")
    if sorted(map(str, result.columns)) != sorted(names):
        raise _failed(ready, f"returned the columns {', '.join(map(str, result.columns))}; its group has others")
    return {feature.name: _feature_values(ready, feature, result[feature.name]) for feature in ready.features}


def _feature_values(ready: _Ready, feature: Feature, column: Any) -> Values:
    try:
        # a column of objects holds arrays of several dimensions, as lists
        array = pa.array(column.map(_plain) if feature.shape else column, from_pandas=True)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise _failed(ready, "returned values of different kinds", feature) from error
    problem = type_problem(feature, array.type)
    if problem:
        # the advice to cast a column is for tables
        problem = problem.partition(", such as")[0].replace(" in the table", "")
        raise _failed(ready, f"returned a column that {problem}", feature)
    return column_values(array, feature)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _failed(ready: _Ready, what: str, feature: Feature | None = None) -> FunctionFailed:
    named = [feature.name] if feature else [one.name for one in ready.features]
    group = ready.group
    return FunctionFailed(
        f"feature group {group.name!r} ({', '.join(named)}): function {group.function} {what}", field=named[0]
    )


def is_findable(module: str, folder: Path) -> bool:
    """Tell whether Python or `folder` has a module, or its package. Imports nothing."""
    top = module.partition(".")[0]
    return importlib.util.find_spec(top) is not None or PathFinder.find_spec(top, [str(folder)]) is not None


def import_module(module: str, folder: Path | None) -> ModuleType:
    """Import a module, which runs its code. `folder` comes after all other places, so that it hides nothing.

    Raises ModuleNotFoundError, and whatever the module raises while it is imported.
    """
    look_in(folder)
    return importlib.import_module(module)


def look_in(folder: Path | None) -> None:
    """Add a folder to the places where Python looks for modules, after all others; None adds nothing."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
