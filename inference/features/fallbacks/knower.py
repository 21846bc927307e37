"""What a fallback asks: something outside that knows features of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

#: entity id → what is known of it, by column
Known = Mapping[str, Mapping[str, Any]]


class Knower(Protocol):
    """Knows features of some entities. It may raise whatever it likes, and take as long as it likes."""

    def prepare(self) -> None:
        """Import and connect, so that no request has to wait for it."""

    def fetch(self, entity_ids: Sequence[str]) -> Known:
        """Return what is known of the entities; those that are unknown are left out."""

    def close(self) -> None:
        """Let go of connections."""
