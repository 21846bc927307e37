"""The interface of a fallback's source: a database or a function of the user's that knows features of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inference.errors import ForecacheError

#: entity id → what is known of it, by column
Known = Mapping[str, Mapping[str, Any]]


class FallbackSource(Protocol):
    """Knows features of some entities. It may raise whatever it likes, and take as long as it likes."""

    def prepare(self) -> None:
        """Import and connect, so that no request has to wait for it."""

    def fetch(self, entity_ids: Sequence[str]) -> Known:
        """Return what is known of the entities; those that are unknown are left out."""

    def close(self) -> None:
        """Let go of connections."""


def describe_failure(error: BaseException) -> str:
    """Return what a source raised in one line, without what a database must not tell."""
    if isinstance(error, ForecacheError):
        return error.message
    # of SQLAlchemy's errors, what the driver said: its own text has the query
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
