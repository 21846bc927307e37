"""What a message to a real-time worker may hold. Any program may send one, so nothing in it is taken for granted.

The contract is written down in `docs/existing.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inference.entities import check_entity_id
from inference.errors import BadEntityId, BadInput, quoted

#: rows of one message: a worker does nothing else meanwhile
MAX_MESSAGE_ROWS = 4096


def check_message(
    field: str, rows: Any, *, model: Any, deadline: Any, overrides: Any = None, recompute: Any = True
) -> None:
    """Refuse a message that cannot be answered row by row; `field` names its argument that holds the rows.

    Raises:
        BadInput: an argument has another type than the contract says, or there are no rows, or too many.
    """
    check_model(model)
    if not isinstance(rows, list):
        raise BadInput(f"{field} must be a list, not {_kind(rows)}", field=field)
    if not 0 < len(rows) <= MAX_MESSAGE_ROWS:
        raise BadInput(
            f"{field} holds {len(rows)}: send 1 to {MAX_MESSAGE_ROWS} in a message, and more in several", field=field
        )
    if isinstance(deadline, bool) or not isinstance(deadline, float | int | None):
        raise BadInput(f"deadline must be epoch seconds, not {_kind(deadline)}", field="deadline")
    if not isinstance(overrides, Mapping | None):
        raise BadInput(f"overrides must be an object of features, not {_kind(overrides)}", field="overrides")
    if not isinstance(recompute, bool):
        raise BadInput(f"recompute must be true or false, not {_kind(recompute)}", field="recompute")


def check_model(model: Any) -> None:
    """Refuse what names no model.

    Raises:
        BadInput: it is neither text nor None.
    """
    if not isinstance(model, str | None):
        raise BadInput(f"model must be text, not {_kind(model)}", field="model")


def check_tensor_message(*, model: Any, deadline: Any, version: Any) -> None:
    """Refuse a message of tensors whose other arguments are not what they should be.

    Raises:
        BadInput: an argument has another type.
    """
    if not isinstance(model, str):
        raise BadInput(f"model must be text, not {_kind(model)}", field="model")
    if isinstance(deadline, bool) or not isinstance(deadline, float | int | None):
        raise BadInput(f"deadline must be epoch seconds, not {_kind(deadline)}", field="deadline")
    if isinstance(version, bool) or not isinstance(version, int | None):
        raise BadInput(f"version must be a number, not {_kind(version)}", field="version")


def illegal_ids(entity_ids: Sequence[Any]) -> dict[int, BadEntityId]:
    """Return what is wrong with ids, by their position; nothing for legal ones."""
    wrong = {}
    for position, entity_id in enumerate(entity_ids):
        try:
            _check(entity_id)
        except BadEntityId as error:
            wrong[position] = error
    return wrong


def _check(entity_id: Any) -> None:
    if not isinstance(entity_id, str):
        hint = f": send {quoted(entity_id)}" if isinstance(entity_id, int) else ""
        raise BadEntityId(f"entity_id must be text, not {_kind(entity_id)}{hint}", field="entity_id")
    check_entity_id(entity_id)


def _kind(value: Any) -> str:
    """Return what JSON calls a value's type."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
