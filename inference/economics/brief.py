"""The brief's own example, to the cent, and where it slips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inference.economics.estimate import Estimate, estimate
from inference.economics.formulas import HOURS_PER_DAY, HOURS_PER_MONTH, SECONDS_PER_DAY, savings_percent
from inference.economics.inputs import Basis, CostInputs, Figure

_HOW = "the brief's example"
#: the inputs of the brief's "Cost Comparison": 1M users once a day against 100 requests a second
BRIEF_FIGURES: dict[str, Figure] = {
    name: Figure(value, Basis.BRIEF, _HOW)
    for name, value in {
        "entities": 1_000_000, "runs_per_day": 1, "throughput": 10_000, "startup_s": 0, "batch_instance_price": 3.0,
        "spot_discount": 0, "retry_factor": 0, "rps": 100, "instance_price": 5.0,
        "instance_rps": 100, "headroom": 0.5, "utilisation": 1, "min_replicas": 1, "redis_price": 0.25, "bytes": 100,
        "generations": 1, "replicas": 1, "storage_price": 0, "storage_bytes": 0, "storage_days": 0,
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class BriefEstimate:
    """`as_written`: what the brief's formulas give; `corrected`: with storage by the day."""

    as_written: Estimate
    corrected: Estimate

    @property
    def slip(self) -> str:
        """What is wrong, in one sentence with both figures."""
        wrong, right = self.as_written.batch, self.corrected.batch
        return (
            f"the brief adds a month's price of storage ({wrong.memory:.6f}) to a day's total: a day of it is "
            f"{right.memory:.6f}, so batch costs {right.daily:.6f} a day and not {wrong.daily:.6f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the brief's figures, and beside them `slip` and `corrected`."""
        return {**self.as_written.to_json(), "slip": self.slip, "corrected": self.corrected.to_json()}


def brief_estimate(inputs: CostInputs) -> BriefEstimate:
    """Return the estimate as the brief's `CostAnalyzer` computes it, and the right one.

    Its storage is `total_preds * 100 / 1e9 * 0.25`, with $0.25 per GB and month: predictions of all of a day's runs,
    and a month's price, in `total_daily_cost`.
    """
    right = estimate(inputs)
    # a month's price in a day, for the predictions of every run
    memory = right.batch.memory * HOURS_PER_MONTH / HOURS_PER_DAY * inputs.runs_per_day
    added = memory - right.batch.memory
    daily, served = right.batch.daily + added, inputs.rps * SECONDS_PER_DAY
    batch = replace(
        right.batch,
        memory=memory,
        per_prediction=daily / (inputs.entities * inputs.runs_per_day),
        per_1000_served=daily / served * 1000,
    )
    hybrid = right.hybrid
    hybrid_daily = hybrid.daily + added
    hybrid = replace(
        hybrid,
        daily=hybrid_daily,
        everything=hybrid.everything + added,
        per_1000_served=hybrid_daily / served * 1000,
    )
    return BriefEstimate(Estimate(batch, right.realtime, hybrid, savings_percent(right.realtime.daily, daily)), right)
