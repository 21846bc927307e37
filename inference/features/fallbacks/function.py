"""A function of the user's that knows features, named in the settings, which is what allows its code to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inference.errors import SettingsError, SourceError
from inference.features.fallbacks.source import Known
from inference.features.user_code import import_module


class FunctionSource:
    """Calls `f(entity_ids)`, which returns a pandas DataFrame with the ids as a column or as its index.

    It is imported when it is prepared, else when it is first called.
    """

    def __init__(self, path: str, entity_column: str, root: Path) -> None:
        self._path = path
        self._root = root
        self._entity_column = entity_column

    @cached_property
    def _function(self) -> Callable[[list[str]], Any]:
        return load_function(self._path, self._root)

    def prepare(self) -> None:
        """See `FallbackSource.prepare`.

        Raises:
            SettingsError: it cannot be imported.
        """
        self._function  # noqa: B018 - which imports it

    def fetch(self, entity_ids: Sequence[str]) -> Known:
        """See `FallbackSource.fetch`.

        Raises:
            SourceError: what it returns is no DataFrame, or has several rows of one entity.
            SettingsError: it cannot be imported.
        """
        import pandas as pd  # the API has this module too, and no use for it

        frame = self._function(list(entity_ids))
        if not isinstance(frame, pd.DataFrame):
            raise SourceError(f"the function returned a {type(frame).__name__}, not a pandas DataFrame")
        ids = [str(one) for one in frame.get(self._entity_column, frame.index)]
        if len(set(ids)) != len(ids):
            raise SourceError("the function returned several rows of one entity")
        # by column, so that each keeps its own type
        columns = {str(name): frame[name].tolist() for name in frame.columns}
        asked = set(entity_ids)
        return {
            entity_id: {name: values[row] for name, values in columns.items()}
            for row, entity_id in enumerate(ids)
            if entity_id in asked
        }

    def close(self) -> None:
        """See `FallbackSource.close`; there is nothing to let go of."""


def load_function(path: str, root: Path) -> Callable[[list[str]], Any]:
    """Import what `package.module:name` names; modules in `root` are found too, after all others.

    Raises:
        SettingsError: there is no such module or function, or importing it fails.
    """
    module_name, _, name = path.partition(":")
    try:
        function = getattr(import_module(module_name, root), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"the function {path!r} cannot be imported: {error}", field="function") from error
    if not callable(function):
        raise SettingsError(f"{path!r} is no function", field="function")
    found: Callable[[list[str]], Any] = function
    return found
