"""What the hit-rate page shows, read through `inference/` and never from the broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inference.clock import Clock, system_clock, to_iso

if TYPE_CHECKING:
    from inference.batch import RunView
    from inference.hits import HitCounts
    from inference.store import Pointer

#: seconds, shortest first: the first is the one that the page calls "now"
WINDOWS_S = (300, 3600, 24 * 3600)
RUNS_SHOWN = 5


class DashboardData(Protocol):
    """Where the page's figures come from; the calls block, and a test may stand in for it."""

    @property
    def models(self) -> Sequence[str]:
        """Names of the configured models, in the page's order."""
        ...

    def hits(self, model: str, window_s: int) -> HitCounts:
        """Return the counts of the last `window_s` seconds."""
        ...

    def in_service(self, model: str) -> Pointer:
        """Return the generation and the version that answer now."""
        ...

    def runs(self, model: str, limit: int) -> Sequence[RunView]:
        """Return the newest runs, newest first."""
        ...


@dataclass(frozen=True)
class LiveData:
    """The figures of this deployment, from the services that the API and the CLI read too."""

    models: Sequence[str]
    hits: Callable[[str, int], HitCounts]
    in_service: Callable[[str], Pointer]
    runs: Callable[[str, int], Sequence[RunView]]


def read_overview(data: DashboardData, clock: Clock = system_clock) -> dict[str, Any]:
    """Return everything the page shows, as JSON values. `read_in_ms` is what reading it took.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
    """
    started = time.perf_counter()
    models = [_model_overview(data, model) for model in data.models]
    took_ms = (time.perf_counter() - started) * 1000
    return {"read_at": to_iso(clock()), "read_in_ms": round(took_ms, 1), "models": models}


def _model_overview(data: DashboardData, model: str) -> dict[str, Any]:
    serving = data.in_service(model)
    return {
        "model": model,
        "generation": serving.current,
        "previous_generation": serving.previous,
        "active_version": serving.active_version,
        "windows": [_window(window_s, data.hits(model, window_s)) for window_s in WINDOWS_S],
        "runs": [run.to_json() for run in data.runs(model, RUNS_SHOWN)],
    }


def _window(window_s: int, counts: HitCounts) -> dict[str, Any]:
    data = {"window_s": window_s, **counts.to_json()}
    # without a request there is no rate, and 0 % would be read as an alarm
    return data if counts.total else {**data, "hit_rate": None}
