"""Opens the fallbacks that a model's settings name."""

from __future__ import annotations

from pathlib import Path

from inference.features.fallbacks.chain import Count, FallbackChain
from inference.features.fallbacks.function import FunctionKnower
from inference.features.fallbacks.knower import Knower
from inference.features.fallbacks.member import Member
from inference.features.fallbacks.sql import SqlKnower
from inference.settings import FallbackSettings, ModelSettings, SqlFallback


def open_fallback(model: ModelSettings, root: Path, count: Count) -> FallbackChain | None:
    """Return a model's fallbacks, or None when it has none. None imports or connects before it is prepared or asked."""
    if not model.fallbacks:
        return None
    members = [Member(one, _knower(one, model.entity_column, root)) for one in model.fallbacks]
    return FallbackChain(members, event_time_column=model.event_time_column, count=count)


def _knower(settings: FallbackSettings, entity_column: str, root: Path) -> Knower:
    if isinstance(settings, SqlFallback):
        return SqlKnower(settings, entity_column)
    return FunctionKnower(settings.function, entity_column, root)
