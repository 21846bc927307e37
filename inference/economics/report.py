"""All about the costs of one model as it stands, from what was measured alone: what the dashboard shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.economics.advice import Advice, advise
from inference.economics.curves import break_even, cost_curve, requests_per_entity, sensitivity
from inference.economics.estimate import estimate
from inference.economics.facts import gather_facts
from inference.economics.inputs import FIELDS, CostInputs, Figure, complete_figures
from inference.economics.measured import Measured
from inference.economics.prices import PriceTable
from inference.errors import SettingsError
from inference.settings import ModelSettings


@dataclass(frozen=True)
class CostReport:
    """A model's costs. `inputs`: None when too little is known, and then `missing` says what."""

    figures: Mapping[str, Figure]
    inputs: CostInputs | None
    missing: str | None
    advice: Advice
    prices: PriceTable

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `estimate`, `curve` and the like are None when too little is known."""
        inputs = self.inputs
        return {
            "missing": self.missing,
            "currency": self.prices.currency,
            "prices_as_of": self.prices.as_of.isoformat(),
            "advice": self.advice.to_json(),
            "inputs": [
                {"name": name, "unit": FIELDS[name].unit, **figure.to_json()} for name, figure in self.figures.items()
            ],
            "estimate": None if inputs is None else estimate(inputs).to_json(),
            "requests_per_entity_and_day": None if inputs is None else requests_per_entity(inputs),
            "break_even": None if inputs is None else break_even(inputs).to_json(),
            "curve": None if inputs is None else cost_curve(inputs).to_json(),
            "sensitivity": [] if inputs is None else [swing.to_json() for swing in sensitivity(inputs)],
        }


def cost_report(model: str, settings: ModelSettings, measured: Measured, prices: PriceTable) -> CostReport:
    """Return what one model costs by what was measured, the prices, and for the rest the defaults."""
    figures = complete_figures(measured.figures, prices.figures())
    advice = advise(model, settings, measured, gather_facts({}, settings, measured), figures)
    try:
        return CostReport(figures, CostInputs.of(figures), None, advice, prices)
    except SettingsError as error:
        return CostReport(figures, None, error.message, advice, prices)
