"""What the pages show, read through `inference/`: minute windows, run ledger, signs of life, queues."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inference.clock import Clock, system_clock, to_iso
from inference.errors import BadInput, BrokerUnavailable, NotFound
from inference.presence import API_PROCESSES
from inference.serving.breaker import BreakerState

if TYPE_CHECKING:
    from inference.batch import RunView
    from inference.batch.details import RunDetails
    from inference.economics.report import CostReport
    from inference.hits import Point, Statistics
    from inference.presence import Roster
    from inference.queues import QueueState
    from inference.store import Pointer

#: name in the address → seconds, shortest first
WINDOWS_S = {"5m": 300, "1h": 3600, "24h": 24 * 3600}
RUNS_SHOWN = 25


class DashboardData(Protocol):
    """Where the pages' figures come from; the calls block, and a test may stand in for it.

    Every call raises StoreUnavailable when the cache Redis does not answer.
    """

    @property
    def models(self) -> Sequence[str]:
        """Names of the configured models, in the pages' order."""
        ...

    @property
    def queue_names(self) -> Sequence[str]:
        """Names of the queues, in the page's order."""
        ...

    def statistics(self, model: str, window_s: int) -> Statistics:
        """Return what was counted in the last `window_s` seconds."""
        ...

    def series(self, model: str, window_s: int) -> Sequence[Point]:
        """Return the same window point by point, oldest first."""
        ...

    def in_service(self, model: str) -> Pointer:
        """Return the generation and the version that answer now."""
        ...

    def run_of(self, model: str, generation: int) -> RunView | None:
        """Return the run that wrote a generation; None when it is not known any more."""
        ...

    def runs(self, model: str, limit: int) -> Sequence[RunView]:
        """Return the newest runs, newest first."""
        ...

    def details(self, run_id: str) -> RunDetails:
        """Return all that is known of one run, or raise NotFound."""
        ...

    def queues(self) -> Sequence[QueueState]:
        """Return the state of each queue, or raise BrokerUnavailable."""
        ...

    def roster(self, queue: str) -> Roster:
        """Return who serves a queue, or, for API_PROCESSES, who answers requests."""
        ...

    def costs(self, model: str) -> CostReport:
        """Return what a model costs by what was measured."""
        ...


@dataclass(frozen=True)
class LiveData:
    """The figures of this deployment, from the services that the API and the CLI read too."""

    models: Sequence[str]
    statistics: Callable[[str, int], Statistics]
    series: Callable[[str, int], Sequence[Point]]
    in_service: Callable[[str], Pointer]
    run_of: Callable[[str, int], RunView | None]
    runs: Callable[[str, int], Sequence[RunView]]
    details: Callable[[str], RunDetails]
    queues: Callable[[], Sequence[QueueState]]
    roster: Callable[[str], Roster]
    costs: Callable[[str], CostReport]
    queue_names: Sequence[str] = ("batch", "realtime", "maintenance")


@dataclass(frozen=True)
class Choice:
    """What an address asks for: a model, a window, a run; None or empty means the page's own choice."""

    model: str = ""
    window: str = ""
    run_id: str = ""

    def chosen_model(self, data: DashboardData) -> str | None:
        """Return the model, the first one if none was asked for; None when none is configured.

        Raises:
            NotFound: it is not configured.
        """
        if not self.model:
            return data.models[0] if data.models else None
        if self.model not in data.models:
            raise NotFound("no such model is configured", field="model")
        return self.model

    def window_s(self) -> int:
        """Return the window's length, 5 minutes if none was asked for.

        Raises:
            BadInput: it is none of those that are offered.
        """
        try:
            return WINDOWS_S[self.window or "5m"]
        except KeyError:
            raise BadInput(f"window is one of {', '.join(WINDOWS_S)}", field="window") from None


def read_hit_rates(data: DashboardData, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return what the page of hit rates shows, as JSON values. `read_in_ms` is what reading it took.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound, BadInput: the address asks for what is not there.
    """
    started, window_s, model = time.perf_counter(), choice.window_s(), choice.chosen_model(data)
    told = None if model is None else _hit_rates_of(data, model, window_s)
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    return {
        "read_at": to_iso(clock()),
        "read_in_ms": took_ms,
        "models": list(data.models),
        "window_s": window_s,
        "model": told,
    }


def _hit_rates_of(data: DashboardData, model: str, window_s: int) -> dict[str, Any]:
    return {
        "model": model,
        "serving": _serving(data, model),
        "windows": [_window(length_s, data.statistics(model, length_s)) for length_s in WINDOWS_S.values()],
        "points": [{"at": to_iso(point.at), **_figures(point.statistics)} for point in data.series(model, window_s)],
    }


def _serving(data: DashboardData, model: str) -> dict[str, Any]:
    pointer = data.in_service(model)
    run = None if pointer.current is None else data.run_of(model, pointer.current)
    coverage = next((gate for gate in run.gates if gate.name == "coverage"), None) if run else None
    return {
        "generation": pointer.current,
        "previous_generation": pointer.previous,
        "active_version": pointer.active_version,
        "labels": dict(pointer.labels.versions),
        "canary_share": pointer.labels.canary_share,
        "held_versions": sorted(pointer.held_versions),
        "published_at": None if run is None or run.finished_at is None else to_iso(run.finished_at),
        "coverage": _coverage(run),
        "coverage_detail": None if coverage is None else coverage.detail,
    }


def _coverage(run: RunView | None) -> float | None:
    """Return the share of the source's rows that the generation answers for, 0 to 1."""
    if run is None or not run.rows_total:
        return None
    return max(run.rows_done - run.rows_quarantined, 0) / run.rows_total


def _window(window_s: int, statistics: Statistics) -> dict[str, Any]:
    return {"window_s": window_s, **_figures(statistics)}


def _figures(statistics: Statistics) -> dict[str, Any]:
    data = statistics.to_json()
    # without a request there is no rate, and 0 % would be read as an alarm
    return data if statistics.counts.total else {**data, "hit_rate": None}


def read_runs(data: DashboardData, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return what the page of runs shows: the newest runs of a model, and one of them closely.

    That one is the run asked for, else the newest.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound: the address asks for what is not there.
    """
    model = choice.chosen_model(data)
    runs = [] if model is None else data.runs(model, RUNS_SHOWN)
    shown = choice.run_id or (runs[0].run_id if runs else "")
    return {
        "read_at": to_iso(clock()),
        "models": list(data.models),
        "model": model,
        "serving": None if model is None else _serving(data, model),
        "runs": [run.to_json() for run in runs],
        "details": data.details(shown).to_json() if shown else None,
    }


def read_costs(data: DashboardData, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return what the page of costs shows of one model.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound: the address asks for what is not there.
    """
    model = choice.chosen_model(data)
    return {
        "read_at": to_iso(clock()),
        "models": list(data.models),
        "model": model,
        "costs": None if model is None else data.costs(model).to_json(),
    }


def read_queues(data: DashboardData, clock: Clock = system_clock) -> dict[str, Any]:
    """Return what the page of queues shows; while the broker is away, everything but the depths.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
    """
    try:
        states, broker_error = {state.queue: state for state in data.queues()}, None
    except BrokerUnavailable as error:
        states, broker_error = {}, error.message
    api = data.roster(API_PROCESSES)
    rosters = {queue: data.roster(queue) for queue in data.queue_names}
    # one that serves several queues is on the roster of each
    workers = {worker.identity: worker for roster in rosters.values() for worker in roster.alive}
    return {
        "read_at": to_iso(clock()),
        "broker_error": broker_error,
        "queues": [_queue(queue, states.get(queue), roster) for queue, roster in rosters.items()],
        "workers": [worker.to_json() for worker in workers.values()],
        "api": {"alive": len(api.alive), "gone": sorted(api.gone)},
        "breakers": [_breaker(model, api) for model in data.models],
        "micro_batches": [
            {"model": model, **(data.statistics(model, WINDOWS_S["5m"]).to_json()["micro_batch_rows"])}
            for model in data.models
        ],
    }


def _breaker(model: str, api: Roster) -> dict[str, Any]:
    """Return how many API processes ask the model's workers, try it again, or ask nothing."""
    states = Counter(process.breakers.get(model) for process in api.alive)
    return {"model": model, **{state.value: states[state.value] for state in BreakerState}}


def _queue(queue: str, state: QueueState | None, roster: Roster) -> dict[str, Any]:
    return {
        "queue": queue,
        "depth": None if state is None else state.depth,
        "oldest_age_s": None if state is None else state.oldest_age_s,
        "workers": sum(worker.ready for worker in roster.alive),
        "gone": sorted(roster.gone),
    }
