"""`hits`: counts how requests were answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from app.cli.context import AnyModel, models_of, open_deployment
from app.cli.output import AsJson, print_json, print_rows
from inference.errors import SettingsError
from inference.outcomes import Outcome


def hits(
    model: AnyModel = None,
    window: Annotated[str, typer.Option(metavar="DURATION", help="How far back to look: 5m, 1h, 24h, …")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Print the hit rate, the outcomes of requests, and the results of fallbacks and parity checks."""
    from inference.features.fallbacks import FallbackOutcome
    from inference.monitoring.counters import FALLBACKS, PARITY, ParityResult
    from inference.monitoring.statistics import Statistics

    window_s = window_seconds(window)
    with open_deployment() as deployment:
        counts, workers = {}, {}
        for name in models_of(model, deployment.settings):
            fields = deployment.hits.fields(name, window_s)
            counts[name] = Statistics.of(fields).counts
            workers[name] = {"fallbacks": _by_name(fields, FALLBACKS), "parity": _by_name(fields, PARITY)}
    if as_json:
        data = [
            {"model": name, "window_s": window_s, **each.to_json(), **workers[name]} for name, each in counts.items()
        ]
        print_json(data)
        return
    print_rows(
        ("model", "total", "hit_rate", *(outcome.value for outcome in Outcome)),
        [
            (
                name,
                each.total,
                None if each.hit_rate is None else f"{each.hit_rate:.1%}",
                *each.to_json()["outcomes"].values(),
            )
            for name, each in counts.items()
        ],
    )
    fallbacks = [
        (name, fallback, *(results.get(outcome, 0) for outcome in FallbackOutcome))
        for name, counted_by in workers.items()
        for fallback, results in counted_by["fallbacks"].items()
    ]
    if fallbacks:
        print_rows(("model", "fallback", *FallbackOutcome), fallbacks)
    parity = [
        (name, path, *(results.get(result, 0) for result in ParityResult))
        for name, counted_by in workers.items()
        for path, results in counted_by["parity"].items()
    ]
    if parity:
        print_rows(("model", "parity_of", *ParityResult), parity)


def _by_name(fields: Mapping[str, int], kind: str) -> dict[str, dict[str, int]]:
    """Return the counts of one kind: name → outcome → count."""
    from inference.monitoring.counters import counted

    found: dict[str, dict[str, int]] = {}
    for (name, outcome), count in sorted(counted(fields, kind).items()):
        found.setdefault(name, {})[outcome] = count
    return found


def window_seconds(text: str) -> int:
    """Return a window in whole seconds, as the API does.

    Raises:
        SettingsError: it is not a duration, or longer than counters are kept.
    """
    from inference.monitoring.statistics import MAX_WINDOW_S
    from inference.settings import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--window: {error}", field="window") from error
    if seconds > MAX_WINDOW_S:
        raise SettingsError(f"--window: {text!r} is too long: counters are kept for 7d", field="window")
    return max(1, round(seconds))
