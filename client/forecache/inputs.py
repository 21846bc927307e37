"""Turns what callers hold into what the API takes: ids of any kind, pandas objects, numpy numbers."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from forecache.errors import BadRequest


def entity_id_of(value: Any) -> str:
    """Return an entity id as text; integers, also numpy's, are written in decimal.

    Raises:
        BadRequest: it is neither text nor an integer.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, bool):
        try:
            return str(operator.index(value))
        except TypeError:
            pass
    shown = f"{value!r}"[:64]
    fix = "; write it as an integer or text" if isinstance(value, float) else ""
    raise BadRequest(f"entity_id: {shown} is {type(value).__name__}, not text or an integer{fix}", field="entity_id")


def entity_ids_of(values: Any) -> list[str]:
    """Return the ids of a list, a pandas Series or Index, or any iterable.

    Raises:
        BadRequest: it is a single text or a table, or an id is of a wrong kind.
    """
    if hasattr(values, "columns"):
        raise BadRequest(
            "entity_ids: this is a table: give its column of ids, or its rows as instances=", field="entity_ids"
        )
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise BadRequest("entity_ids: give a list of ids; for one id call predict", field="entity_ids")
    return [entity_id_of(value) for value in values]


def instances_of(values: Any) -> list[Any]:
    """Return instances for the API: rows of a DataFrame become objects by column; NaN and NaT become null.

    Raises:
        BadRequest: it is no list of rows.
    """
    if hasattr(values, "to_dict") and hasattr(values, "columns"):
        return list(values.to_dict(orient="records"))
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise BadRequest("instances: give a list of rows, or a DataFrame", field="instances")
    return list(values)


def index_of(values: Any) -> Any:
    """Return the index of a pandas Series or DataFrame, None of anything else."""
    return getattr(values, "index", None) if hasattr(values, "to_dict") else None


def instant_of(value: datetime | str | None, field: str) -> str | None:
    """Return an instant in ISO 8601.

    Raises:
        BadRequest: it has no time zone.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise BadRequest(f"{field}: {value} has no time zone; add one", field=field)
        return value.isoformat()
    return value


def parts_of(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Return the rows in parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def body_of(value: Any) -> bytes:
    """Return JSON in UTF-8; NaN and infinities become null, numpy numbers and arrays plain ones.

    Raises:
        BadRequest: it holds something that JSON cannot say.
    """
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        # a NaN somewhere: only then is a second look worth its time
        return json.dumps(_without_nan(value), default=_plain, allow_nan=False, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime) and value == value:
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _without_nan(value.tolist())
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    raise BadRequest(f"{value!r:.64} is {type(value).__name__}, which JSON cannot hold")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return value
