"""A database asked by one query, through SQLAlchemy, which is imported when it is prepared or first asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from inference.errors import SettingsError, SourceError
from inference.features.fallbacks.source import Known
from inference.settings import SqlFallback

if TYPE_CHECKING:
    from sqlalchemy import Engine, TextClause

_INT64 = range(-(2**63), 2**63)


class SqlSource:
    """Runs the query of the settings, in a transaction that is rolled back."""

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
        # the server gives up too, or queries that nobody waits for would pile up there; it connects in whole seconds
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
        pool_pre_ping=True,  # a database that was started anew costs nobody a failure
        hide_parameters=True,
    )


def _is_integer(text: str) -> bool:
    """Return whether an id is an integer as it would be written, so that `007` is not `7`."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and int(text) in _INT64
