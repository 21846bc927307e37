"""Opens the fallbacks that a model's settings name."""

from __future__ import annotations

from pathlib import Path

from inference.features.fallbacks.chain import Count, FallbackChain
from inference.features.fallbacks.function import FunctionKnower, load_function
from inference.features.fallbacks.knower import Knower
from inference.features.fallbacks.member import Member
from inference.features.fallbacks.sql import SqlKnower
from inference.settings import FallbackSettings, ModelSettings, SqlFallback


def open_fallback(model: ModelSettings, root: Path, count: Count) -> FallbackChain | None:
    """Return a model's fallbacks, or None when it has none. Nothing connects before the first entity is asked for.

    Raises:
        SettingsError: a function cannot be imported, or SQLAlchemy is not installed.
    """
    if not model.fallbacks:
        return None
    members = [Member(one, _knower(one, model.entity_column, root)) for one in model.fallbacks]
    return FallbackChain(members, event_time_column=model.event_time_column, count=count)


def _knower(settings: FallbackSettings, entity_column: str, root: Path) -> Knower:
    if isinstance(settings, SqlFallback):
        return SqlKnower(settings, entity_column)
    return FunctionKnower(load_function(settings.function, root), entity_column)
