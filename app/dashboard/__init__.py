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
        # an optional extra: imported here first, so that the error below names it
        import flower  # noqa: F401
        import plotly  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'forecache[dashboard]'") from error
    from app.dashboard.server import run

    run(settings)


__all__ = ["serve"]
