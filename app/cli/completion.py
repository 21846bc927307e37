"""What the shell completes: models from the settings, runs from Redis if it answers at once.

A completion that fails completes nothing: the shell's line is no place for errors.
"""

from __future__ import annotations

from inference.errors import ForecacheError

#: a person waits for this between two keys
_PATIENCE_S = 0.5
_RUNS = 20


def complete_model(incomplete: str) -> list[str]:
    """Return the configured models that begin so."""
    from app.cli.context import load_settings

    try:
        return [name for name in sorted(load_settings().models) if name.startswith(incomplete)]
    except ForecacheError:
        return []


def complete_run(incomplete: str) -> list[str]:
    """Return the newest runs whose ids begin so."""
    import redis

    from app.cli.context import load_settings
    from inference.batch.ledger import Ledger
    from inference.keys import Keys

    try:
        settings = load_settings()
        with redis.Redis.from_url(
            settings.cache_url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S, retry=None
        ) as client:
            ledger = Ledger(client, Keys(settings.redis.prefix))
            found = [run.run_id for model in settings.models for run in ledger.newest(model, _RUNS)]
    except (ForecacheError, ValueError):
        return []
    return [run_id for run_id in found if run_id.startswith(incomplete)]
