"""Facts about a model's use, from its settings and from what was measured; what the caller says goes before both."""

from __future__ import annotations

import math
from collections.abc import Mapping

from inference.economics.inputs import Basis, Figure
from inference.economics.measured import Measured
from inference.errors import SettingsError
from inference.settings import ModelSettings

#: a rate of fewer requests says little
LEAST_REQUESTS = 100


#: facts with another range than from 0
_RANGES = {"coverage": (0.0, 1.0, "from 0 to 1"), "peak_ratio": (1.0, math.inf, "1 or more")}


def check_fact(name: str, value: float) -> float:
    """Return the value if it is a legal fact.

    Raises:
        SettingsError: it is not finite, or out of range; `field` names it.
    """
    least, most, told = _RANGES.get(name, (0.0, math.inf, "0 or more"))
    if not math.isfinite(value) or not least <= value <= most:
        option = f"--{name.replace('_', '-')}"
        raise SettingsError(f"{name}: {value:g} cannot be used: {option} is {told}", field=name)
    return value


def gather_facts(said: Mapping[str, Figure], settings: ModelSettings, measured: Measured) -> dict[str, Figure]:
    """Return what is known: said by the caller, else written in the settings, else measured."""
    facts = {**_measured(measured), **_settings(settings), **said}
    for name in ("max_staleness_hours", "stable_hours"):
        if name in facts and not facts[name].value:
            facts.setdefault("fresh_features", Figure(1, facts[name].origin, f"{name} is 0"))
    return facts


def _settings(settings: ModelSettings) -> dict[str, Figure]:
    """Return what the settings say on purpose: their defaults are no statements about a use case."""
    facts = {}
    if settings.features is None:
        facts["no_table"] = Figure(1, Basis.SETTINGS, "[models.M] features is not set")
    if "timeout_ms" in settings.realtime.model_fields_set:
        facts["latency_ms"] = Figure(settings.realtime.timeout_ms, Basis.SETTINGS, "[models.M.realtime] timeout_ms")
    if "ttl" in settings.batch.model_fields_set:
        facts["max_staleness_hours"] = Figure(settings.batch.ttl / 3600, Basis.SETTINGS, "[models.M.batch] ttl")
    if settings.realtime.default is not None:
        facts["must_answer"] = Figure(1, Basis.SETTINGS, "[models.M.realtime] default is set")
    return facts


def _measured(measured: Measured) -> dict[str, Figure]:
    facts: dict[str, Figure] = {}
    if measured.clock_groups:
        how = f"features.json: group {measured.clock_groups[0]} is computed from the present time"
        facts["uses_clock"] = Figure(1, Basis.MEASURED, how)
    if measured.requests < LEAST_REQUESTS:
        return facts
    if measured.entities and measured.asked_week:
        share = min(measured.asked_week / measured.entities, 1.0)
        how = f"{measured.asked_week} of {measured.entities:g} entities were asked for within 7 days"
        facts["coverage"] = Figure(share, Basis.MEASURED, how)
    if measured.statistics.miss_latency.total >= LEAST_REQUESTS:
        median_s = measured.statistics.miss_latency.quantile(0.5)
        if median_s is not None:
            facts["model_ms"] = Figure(round(median_s * 1000, 2), Basis.MEASURED, "median of misses within 24 h")
    rps, peak = measured.figures.get("rps"), measured.figures.get("peak_rps")
    if rps and peak:
        facts["peak_ratio"] = Figure(round(peak.value / rps.value, 3), Basis.MEASURED, peak.how)
    return facts
