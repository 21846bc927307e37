"""The dashboard: Flower over our Celery application, with pages of hit rates, runs and queues."""

from __future__ import annotations

from inference.errors import SettingsError
from inference.settings import Settings


def serve(settings: Settings) -> None:
    """Run the dashboard until SIGINT or SIGTERM.

    Raises:
        SettingsError: Flower is not installed, the port is taken, or the credentials cannot be used.
    """
    try:
        # an optional extra: asked for here, so that the sentence below is the answer
        import flower  # noqa: F401
        import plotly  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'forecache[dashboard]'") from error
    from app.dashboard.server import run

    run(settings)


__all__ = ["serve"]
