"""Reads tables that are queries of a database, by ADBC (https://arrow.apache.org/adbc/).

`sql:FILE` names such a table. The file is TOML: `url`, or `url_variable` with the name of an environment variable that
has it, and `query`. The query runs in a transaction that may only read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from inference.errors import SourceError
from inference.field_errors import describe_error_in_file
from inference.redaction import remember_secret
from inference.small_files import read_small_text

#: scheme of a URL → ADBC's driver
_DRIVERS = {"postgresql": "adbc_driver_postgresql", "sqlite": "adbc_driver_sqlite"}


class SqlQuery(BaseModel):
    """A query and its database. `url`: `postgresql://…` as libpq reads it, or `sqlite:///PATH`."""

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
        raise SourceError(f"{path} is not readable as a query in TOML: {error}", field="source") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {describe_error_in_file(first)}" if where else first["msg"].removeprefix("Value error, ")
        raise SourceError(f"{path}: {told}", field="source") from error


def query_rows(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the query in a file, as the database sends them.

    Raises:
        SourceError: as `read_query` says, or the URL is missing or of an unknown kind.
        ModuleNotFoundError: ADBC's driver is missing.
        Exception: the driver's, such as for a query that fails half-way.
    """
    query = read_query(path)
    with _connect(path, query) as connection, connection.cursor() as cursor:
        cursor.execute(query.query)
        yield from cursor.fetch_record_batch()


def _connect(path: str, query: SqlQuery) -> Any:
    url = query.url.get_secret_value() if query.url else os.environ.get(query.url_variable or "", "")
    if not url:
        raise SourceError(f"{path}: the environment variable {query.url_variable} is not set here", field="source")
    remember_secret(url)
    scheme = urlsplit(url).scheme
    if scheme not in _DRIVERS:
        known = " or ".join(f"{one}://" for one in _DRIVERS)
        raise SourceError(f"{path}: the url of a database begins with {known}, not {scheme}://", field="source")
    driver = import_module(f"{_DRIVERS[scheme]}.dbapi")
    if scheme == "sqlite":
        database = Path(path).parent / url.removeprefix("sqlite:///")
        return driver.connect(f"file:{quote(str(database))}?mode=ro")
    connection = driver.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
    return connection
