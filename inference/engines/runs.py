"""Runs for processes of Spark, which send no messages."""

from __future__ import annotations

from collections.abc import Sequence

from inference.batch import Runs
from inference.services import Services
from inference.settings import Settings


def build_runs(settings: Settings) -> Runs:
    """Return runs that send nothing: what is due besides, the reconciler finds within seconds."""
    parts = Services(settings)
    return Runs(
        settings, parts.cache, parts.keys, parts.registry, lambda: parts.host, parts.table, _send_nothing, _poke_nobody
    )


def _send_nothing(_run_id: str, _chunks: Sequence[int]) -> None:
    """Leave it to the driver."""


def _poke_nobody() -> None:
    """Leave it to the reconciler."""
