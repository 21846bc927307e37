"""`hits`: how requests were answered."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.arguments import AnyModel
from app.cli.context import models_of, open_services
from app.cli.output import AsJson, print_json, print_rows
from inference.errors import SettingsError
from inference.outcomes import Outcome


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(hits)


def hits(
    model: AnyModel = None,
    window: Annotated[str, typer.Option(metavar="DURATION", help="How far back to look: 5m, 1h, 24h, …")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Print the hit rate and the seven outcomes that requests had."""
    from inference.hits import HitWindows

    window_s = window_seconds(window)
    with open_services() as services:
        windows = HitWindows(services.cache, services.keys)
        counts = {name: windows.read(name, window_s) for name in models_of(model, services.settings)}
    if as_json:
        print_json([{"model": name, "window_s": window_s, **each.to_json()} for name, each in counts.items()])
        return
    print_rows(
        ("model", "total", "hit_rate", *(outcome.value for outcome in Outcome)),
        [
            (name, each.total, f"{each.hit_rate:.1%}", *each.to_json()["outcomes"].values())
            for name, each in counts.items()
        ],
    )


def window_seconds(text: str) -> int:
    """Return whole seconds, as the API counts them."""
    from inference.hits.windows import MAX_WINDOW_S
    from inference.settings import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--window: {error}", field="window") from error
    if seconds > MAX_WINDOW_S:
        raise SettingsError(f"--window: {text!r} is too long: counters are kept for 7d", field="window")
    return max(1, round(seconds))
