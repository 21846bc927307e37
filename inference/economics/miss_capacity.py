"""Tells how many real-time workers bear the requests that an active set leaves to them, and all if a run fails."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from inference.economics.estimate import instances_needed
from inference.economics.inputs import Figure, complete_figures
from inference.economics.measured import Measured
from inference.economics.rules import LEAST_REQUESTS
from inference.settings import ModelSettings


@dataclass(frozen=True)
class MissCapacity:
    """The real-time workers that an active set needs.

    `share`: of the requests that the set answers, 0 to 1; `worker_rps`: requests/s that one worker computes, and `how`
    that is known. `workers`: needed at the peak, `workers_if_a_run_fails`: needed once all predictions are too old.
    """

    peak_rps: float
    share: float
    worker_rps: float
    how: str
    workers: int
    workers_if_a_run_fails: int

    @property
    def text(self) -> str:
        """The load in words."""
        missed = self.peak_rps * (1 - self.share)
        return (
            f"the active set answers {self.share:.1%} of requests; at the peak {missed:.3g} of {self.peak_rps:.3g}/s "
            f"are computed, at {self.worker_rps:.3g}/s a worker ({self.how})"
        )


def miss_capacity(model: ModelSettings, measured: Measured) -> MissCapacity | None:
    """Return the workers that a model's active set needs; None without a set, without traffic, or before its first run.

    Takes the formula of real-time instances, with its headroom.
    """
    share = model.batch.rule.hit_rate if measured.entities_share is None else measured.entities_share
    if model.batch.rule.is_all or share is None or measured.requests < LEAST_REQUESTS:
        return None
    figures = complete_figures(measured.figures)
    worker_rps, how = _worker_rps(measured, figures["instance_rps"])
    needed = partial(
        instances_needed,
        peak_rps=figures["peak_rps"].value,
        headroom=figures["headroom"].value,
        instance_rps=worker_rps,
        utilisation=figures["utilisation"].value,
        min_replicas=figures["min_replicas"].value,
    )
    return MissCapacity(figures["peak_rps"].value, share, worker_rps, how, needed(hit_rate=share), needed(hit_rate=0.0))


def _worker_rps(measured: Measured, assumed: Figure) -> tuple[float, str]:
    """Return how many requests a worker computes in a second: the rows of a message over the time of a miss."""
    latency, rows = measured.statistics.miss_latency, measured.statistics.micro_batch
    median_s = latency.quantile(0.5)
    if latency.total < LEAST_REQUESTS or not median_s or not rows.total:
        return assumed.value, f"{assumed.origin.value}: {assumed.how}"
    each = max(rows.sum / rows.total, 1.0)
    return each / median_s, f"measured: {each:.3g} entities a message, in {median_s * 1000:.3g} ms"
