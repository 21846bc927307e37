"""The sources of fallbacks: a query of a database, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inference.errors import ForecacheError, SettingsError, SourceError
from inference.features.functions import import_module
from inference.settings import SqlFallback

if TYPE_CHECKING:
    from sqlalchemy import Engine, TextClause

#: entity id → its values by column
Known = Mapping[str, Mapping[str, Any]]
_INT64 = range(-(2**63), 2**63)


class FallbackSource(Protocol):
    """Knows features of some entities. It may raise any error, and take any time."""

    def prepare(self) -> None:
        """Import and connect, so that no request waits for that."""

    def fetch(self, entity_ids: Sequence[str]) -> Known:
        """Return the rows of the entities. Leaves out unknown ones."""

    def close(self) -> None:
        """Let go of connections."""


def describe_failure(error: BaseException) -> str:
    """Return a source's error in one line, without the query of a database."""
    if isinstance(error, ForecacheError):
        return error.message
    # the text of SQLAlchemy's own errors has the query, so take the driver's
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]


class FunctionSource:
    """Calls `f(entity_ids)`, which returns a pandas DataFrame with the ids as a column or as its index.

    The settings name the function, which allows its code to run. `prepare` or the first call imports it.
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
            SourceError: it returns no DataFrame, or several rows of one entity.
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
        wanted = set(entity_ids)
        return {
            entity_id: {name: values[row] for name, values in columns.items()}
            for row, entity_id in enumerate(ids)
            if entity_id in wanted
        }

    def close(self) -> None:
        """Do nothing: a function holds no connection."""


def load_function(path: str, root: Path) -> Callable[[list[str]], Any]:
    """Import the function `package.module:name`. Looks for the module in `root` too, after all other places.

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


class SqlSource:
    """Runs the query of the settings through SQLAlchemy, and rolls the transaction back.

    `prepare` or the first call imports SQLAlchemy.
    """

    def __init__(self, settings: SqlFallback, entity_column: str) -> None:
        self._settings = settings
        self._entity_column = entity_column
        self._as_integer = settings.id_type == "integer"

    @cached_property
    def _engine(self) -> Engine:
        try:
            return _open_engine(self._settings)
        except ImportError as error:
            raise SettingsError(f"a driver is missing ({error}): install forecache[sql]") from error

    @cached_property
    def _query(self) -> TextClause:
        import sqlalchemy

        kind = sqlalchemy.BigInteger() if self._as_integer else sqlalchemy.String()
        ids: Any = sqlalchemy.bindparam("ids", expanding=True, type_=kind)
        return sqlalchemy.text(self._settings.query).bindparams(ids)

    def prepare(self) -> None:
        """See `FallbackSource.prepare`: one connection is made and kept.

        Raises:
            SettingsError: SQLAlchemy or the database's driver is not installed.
        """
        with self._engine.connect():
            pass

    def fetch(self, entity_ids: Sequence[str]) -> Known:
        """See `FallbackSource.fetch`.

        Raises:
            SourceError: the query selects no entity column, or several rows of one entity.
            SettingsError: SQLAlchemy or the database's driver is not installed.
        """
        ids = [int(text) for text in entity_ids if _is_integer(text)] if self._as_integer else list(entity_ids)
        if not ids:
            return {}
        with self._engine.connect() as connection:
            rows = connection.execute(self._query, {"ids": ids}).mappings().all()
        known: dict[str, Any] = {}
        for row in rows:
            if self._entity_column not in row:
                raise SourceError(f"the query selects no column {self._entity_column!r}", field="query")
            entity_id = str(row[self._entity_column])
            if entity_id in known:
                raise SourceError(f"the query returns several rows of {entity_id!r}", field="query")
            known[entity_id] = row
        return known

    def close(self) -> None:
        """See `FallbackSource.close`."""
        if "_engine" in vars(self):
            self._engine.dispose()


def _open_engine(settings: SqlFallback) -> Engine:
    import sqlalchemy

    url = sqlalchemy.make_url(settings.url.get_secret_value())
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # SQLAlchemy itself would look for psycopg 2
    options: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        # the server ends the query too: else queries that nobody waits for pile up; it takes whole seconds to connect
        milliseconds = max(1, math.ceil(settings.timeout * 1000))
        options = {
            "options": f"-c statement_timeout={milliseconds} -c default_transaction_read_only=on",
            "connect_timeout": max(1, math.ceil(settings.timeout)),
        }
    elif url.get_backend_name() == "sqlite":
        options = {"timeout": settings.timeout}
    return sqlalchemy.create_engine(
        url,
        connect_args=options,
        pool_size=settings.pool,
        max_overflow=0,
        pool_timeout=settings.timeout,
        pool_pre_ping=True,  # a restart of the database fails no request
        hide_parameters=True,
    )


def _is_integer(text: str) -> bool:
    """Tell whether an id is an integer in its usual spelling, so that `007` is not `7`."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and int(text) in _INT64
