"""Reads tables that are queries of a database: by ADBC (https://arrow.apache.org/adbc/), or of DuckDB by itself.

`sql:FILE` names such a table. The file is TOML: `url`, or `url_variable` with the name of an environment variable that
has it, and `query`. The query may only read.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from inference.errors import SourceError
from inference.field_errors import describe_error_in_file
from inference.redaction import remember_secret, without_secrets
from inference.small_files import read_small_text

#: memory of one query of DuckDB, which then writes temporary files; rows of its batches
_DUCKDB_MEMORY, _DUCKDB_ROWS = "1GB", 1 << 16


class SqlQuery(BaseModel):
    """A query and its database. `url`: `postgresql://…` as libpq reads it, `sqlite:///PATH` or `duckdb:///PATH`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Annotated[str, Field(min_length=1)]
    url: SecretStr | None = None
    url_variable: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_one_url(self) -> SqlQuery:
        if (self.url is None) == (self.url_variable is None):
            raise ValueError("give either url or url_variable, the name of an environment variable that has it")
        return self


def read_query(path: str) -> SqlQuery:
    """Return the query in a file.

    Raises:
        SourceError: the file cannot be read, or lacks something; names the field.
    """
    try:
        return SqlQuery.model_validate(tomllib.loads(read_small_text(Path(path))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f'{path} is not readable as a query in TOML: {error}; it needs two lines, url = "…" and query = "…"'
        raise SourceError(message, field="source") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        known = f"no such key; known: {', '.join(SqlQuery.model_fields)}"
        what = known if first["type"] == "extra_forbidden" else describe_error_in_file(first)
        told = f"{where}: {what}" if where else first["msg"].removeprefix("Value error, ")
        raise SourceError(f"{path}: {told}", field="source") from error


def query_rows(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the query in a file, as the database sends them.

    Raises:
        SourceError: as `read_query` says, the URL is missing or of an unknown kind, or the query writes.
        ModuleNotFoundError: the database's driver is missing.
        Exception: the driver's, such as for a query that fails half-way.
    """
    query = read_query(path)
    url = query.url.get_secret_value() if query.url else os.environ.get(query.url_variable or "", "")
    if not url:
        raise SourceError(f"{path}: the environment variable {query.url_variable} is not set here", field="source")
    remember_secret(url)
    scheme, _, place = url.partition("://")
    if scheme not in _READ_BY:
        known = ", ".join(f"{one}://" for one in _READ_BY if one != "postgres")
        raise SourceError(f"{path}: the url of a database begins with one of {known}; not {scheme}://", field="source")
    if _READ_BY[scheme] is not _of_postgresql:
        file = Path(path).parent / place.removeprefix("/")
        if not file.is_file():
            raise SourceError(
                f"{path}: there is no database {without_secrets(str(file))}: correct the url, whose relative path "
                "begins at the folder of this file",
                field="source",
            )
        url = str(file)
    yield from _READ_BY[scheme](url, _without_end(query.query))


def _without_end(query: str) -> str:
    """Return a query without its semicolon, and with a last comment ended: ADBC puts it into a COPY statement."""
    text = query.rstrip("; \t\r\n")
    return f"{text}\n" if "--" in text.rpartition("\n")[2] else text


def _of_postgresql(url: str, query: str) -> Iterator[pa.RecordBatch]:
    driver = import_module("adbc_driver_postgresql.dbapi")
    with driver.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(query)
        yield from cursor.fetch_record_batch()


def _of_sqlite(file: str, query: str) -> Iterator[pa.RecordBatch]:
    driver = import_module("adbc_driver_sqlite.dbapi")
    with driver.connect(f"file:{quote(file)}?mode=ro") as connection, connection.cursor() as cursor:
        cursor.execute(query)
        yield from cursor.fetch_record_batch()


def _of_duckdb(file: str, query: str) -> Iterator[pa.RecordBatch]:
    duckdb = import_module("duckdb")
    config = {"memory_limit": _DUCKDB_MEMORY, "temp_directory": tempfile.gettempdir()}
    config["autoinstall_known_extensions"] = "false"
    with duckdb.connect(file, read_only=True, config=config) as connection:
        statements = connection.extract_statements(query)
        # COPY writes files although the database may only be read
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise SourceError("the query of DuckDB must be one SELECT", field="source")
        yield from connection.sql(query).to_arrow_reader(_DUCKDB_ROWS)


_READ_BY: Mapping[str, Callable[[str, str], Iterator[pa.RecordBatch]]] = {
    "postgresql": _of_postgresql,
    "postgres": _of_postgresql,
    "sqlite": _of_sqlite,
    "duckdb": _of_duckdb,
}
