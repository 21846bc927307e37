"""`hits`: counts how requests were answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import AnyModel, models_of, open_deployment
from app.cli.output import AsJson, print_json, print_rows
from inference.errors import SettingsError
from inference.outcomes import Outcome

if TYPE_CHECKING:
    from inference.monitoring.statistics import HitCounts


def hits(
    model: AnyModel = None,
    window: Annotated[str, typer.Option(metavar="DURATION", help="How far back to look: 5m, 1h, 24h, …")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Print the hit rate, the outcomes of requests by model and version, and of fallbacks and parity checks."""
    from inference.features.fallbacks import FallbackOutcome
    from inference.monitoring.counters import FALLBACKS, PARITY, ParityResult
    from inference.monitoring.statistics import Statistics

    window_s = window_seconds(window)
    with open_deployment() as deployment:
        found, workers = {}, {}
        for name in models_of(model, deployment.settings):
            fields = deployment.hits.fields(name, window_s)
            found[name] = Statistics.of(fields)
            workers[name] = {"fallbacks": _by_name(fields, FALLBACKS), "parity": _by_name(fields, PARITY)}
    if as_json:
        data = [
            {"model": name, "window_s": window_s, **each.counts.to_json(), "versions": each.versions_json()}
            | workers[name]
            for name, each in found.items()
        ]
        print_json(data)
        return
    names = ("total", "hit_rate", *(outcome.value for outcome in Outcome))
    print_rows(("model", *names), [(name, *_cells(each.counts)) for name, each in found.items()])
    versions = [
        (name, version, *_cells(counts)) for name, each in found.items() for version, counts in each.versions.items()
    ]
    if versions:
        print_rows(("model", "version", *names), versions)
    _print_results("fallback", {name: each["fallbacks"] for name, each in workers.items()}, list(FallbackOutcome))
    _print_results("parity_of", {name: each["parity"] for name, each in workers.items()}, list(ParityResult))


def _print_results(of: str, found: Mapping[str, Mapping[str, Mapping[str, int]]], results: Sequence[str]) -> None:
    """Print what workers counted: model → name → result → count. Nothing if there is nothing."""
    rows = [
        (model, name, *(counts.get(result, 0) for result in results))
        for model, named in found.items()
        for name, counts in named.items()
    ]
    if rows:
        print_rows(("model", of, *results), rows)


def _cells(counts: HitCounts) -> list[Any]:
    rate = None if counts.hit_rate is None else f"{counts.hit_rate:.1%}"
    return [counts.total, rate, *counts.to_json()["outcomes"].values()]


def _by_name(fields: Mapping[str, int], kind: str) -> dict[str, dict[str, int]]:
    """Return the counts of one kind: name → outcome → count."""
    from inference.monitoring.counters import counts_of_kind

    found: dict[str, dict[str, int]] = {}
    for (name, outcome), count in sorted(counts_of_kind(fields, kind).items()):
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
