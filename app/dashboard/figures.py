"""Reads the figures of the pages: hit rates, runs, queues and workers, costs.

The functions block, and raise StoreUnavailable when the cache Redis does not answer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.batch import RunState, RunView
from inference.clock import Clock, system_clock, to_iso
from inference.deployment import Deployment
from inference.errors import BadInput, BrokerUnavailable, NotFound
from inference.monitoring.presence import API_PROCESSES, Roster
from inference.monitoring.queues import QueueState
from inference.monitoring.statistics import Statistics
from inference.serving.worker_client import BreakerState

#: name in the address → seconds, shortest first
WINDOWS_S = {"5m": 300, "1h": 3600, "24h": 24 * 3600}
RUNS_SHOWN = 25
#: runs that the page of differences offers
RUNS_COMPARED = 10
PROMISES_SHOWN = 30


def models_of(deployment: Deployment) -> list[str]:
    """Return the names of the configured models, in the pages' order."""
    return sorted(deployment.settings.models)


@dataclass(frozen=True)
class Choice:
    """The choices in a page's address: a model, a window, a run; empty means the page's default."""

    model: str = ""
    window: str = ""
    run_id: str = ""

    def chosen_model(self, deployment: Deployment) -> str | None:
        """Return the chosen model, by default the first one; None if none is configured.

        Raises:
            NotFound: it is not configured.
        """
        models = models_of(deployment)
        if not self.model:
            return models[0] if models else None
        if self.model not in models:
            raise NotFound("no such model is configured", field="model")
        return self.model

    def window_s(self) -> int:
        """Return the length of the chosen window, by default an hour.

        Raises:
            BadInput: the pages do not offer this window.
        """
        try:
            return WINDOWS_S[self.window or "1h"]
        except KeyError:
            raise BadInput(f"window is one of {', '.join(WINDOWS_S)}", field="window") from None


def read_hit_rates(deployment: Deployment, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return the figures of the page of hit rates, as JSON values. `read_in_ms`: the time to read them.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound, BadInput: there is no such model or window.
    """
    started, window_s, model = time.perf_counter(), choice.window_s(), choice.chosen_model(deployment)
    told = None if model is None else _hit_rates_of(deployment, model, window_s)
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    return {
        "read_at": to_iso(clock()),
        "read_in_ms": took_ms,
        "models": models_of(deployment),
        "window_s": window_s,
        "model": told,
    }


def _hit_rates_of(deployment: Deployment, model: str, window_s: int) -> dict[str, Any]:
    return {
        "model": model,
        "serving": _serving(deployment, model),
        "windows": [_window(length_s, deployment.hits.statistics(model, length_s)) for length_s in WINDOWS_S.values()],
        "points": [
            {"at": to_iso(point.at), **point.statistics.to_json()} for point in deployment.hits.series(model, window_s)
        ],
    }


def _serving(deployment: Deployment, model: str) -> dict[str, Any]:
    pointer = deployment.predictions(model).pointer()
    run = None if pointer.current is None else _run_of(deployment, model, pointer.current)
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


def _run_of(deployment: Deployment, model: str, generation: int) -> RunView | None:
    """Return the run that wrote a generation; None if its record is gone."""
    manifest = deployment.predictions(model).generations.manifest(generation)
    if manifest is None or manifest.run_id is None:
        return None
    try:
        return deployment.runs.show(manifest.run_id)
    except NotFound:
        return None


def _coverage(run: RunView | None) -> float | None:
    """Return the share of the source's rows that the generation holds, 0 to 1."""
    if run is None or not run.rows_total:
        return None
    return max(run.rows_done - run.rows_quarantined - run.rows_outside, 0) / run.rows_total


def _window(window_s: int, statistics: Statistics) -> dict[str, Any]:
    return {"window_s": window_s, **statistics.to_json()}


def read_runs(deployment: Deployment, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return the figures of the page of runs: the newest runs of a model, and all details of one.

    That one is the chosen run, by default the newest.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound: there is no such model or run.
    """
    model = choice.chosen_model(deployment)
    runs = [] if model is None else deployment.runs.list(model, limit=RUNS_SHOWN)
    shown = choice.run_id or (runs[0].run_id if runs else "")
    return {
        "read_at": to_iso(clock()),
        "models": models_of(deployment),
        "model": model,
        "serving": None if model is None else _serving(deployment, model),
        "runs": [run.to_json() for run in runs],
        "details": deployment.runs.details(shown).to_json() if shown else None,
    }


def read_differences(deployment: Deployment, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return the figures of the page of differences: the newest whole runs of a model, and the comparison of one.

    That one is the chosen run, by default the one that is held, otherwise the newest that was compared.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound: there is no such model or run.
    """
    model = choice.chosen_model(deployment)
    found = [] if model is None else deployment.runs.list(model, limit=RUNS_SHOWN)
    runs = [run for run in found if run.entities_asked is None and run.since is None]
    shown = deployment.runs.show(choice.run_id) if choice.run_id else _to_look_at(deployment, runs)
    diff = None if shown is None else deployment.runs.kept_diff(shown.run_id)
    return {
        "read_at": to_iso(clock()),
        "models": models_of(deployment),
        "model": model,
        "runs": [run.to_json() for run in runs[:RUNS_COMPARED]],
        "run": None if shown is None else shown.to_json(),
        "diff": None if diff is None else diff.to_json(),
    }


def _to_look_at(deployment: Deployment, runs: Sequence[RunView]) -> RunView | None:
    held = next((run for run in runs if run.state is RunState.HELD), None)
    compared = (run for run in runs[:RUNS_COMPARED] if deployment.runs.was_compared(run.run_id))
    return held or next(compared, next(iter(runs), None))


def read_costs(deployment: Deployment, choice: Choice, clock: Clock = system_clock) -> dict[str, Any]:
    """Return the figures of the page of costs, for one model.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
        NotFound: there is no such model.
    """
    model = choice.chosen_model(deployment)
    return {
        "read_at": to_iso(clock()),
        "models": models_of(deployment),
        "model": model,
        "costs": None if model is None else _costs(deployment, model),
    }


def _costs(deployment: Deployment, model: str) -> dict[str, Any]:
    days = deployment.promises.days(model, PROMISES_SHOWN)
    return {**deployment.cost_report(model).to_json(), "promises": [day.to_json() for day in days]}


def read_queues(deployment: Deployment, _: Choice | None = None, clock: Clock = system_clock) -> dict[str, Any]:
    """Return the figures of the page of queues; while the broker is away, all but the depths.

    Raises:
        StoreUnavailable: the cache Redis did not answer.
    """
    try:
        states, broker_error = {state.queue: state for state in deployment.broker.queue_states()}, None
    except BrokerUnavailable as error:
        states, broker_error = {}, error.message
    api = deployment.presence.roster(API_PROCESSES)
    rosters = {queue: deployment.presence.roster(queue) for queue in deployment.settings.queues}
    # a worker that serves several queues is on the roster of each
    workers = {worker.identity: worker for roster in rosters.values() for worker in roster.alive}
    return {
        "read_at": to_iso(clock()),
        "broker_error": broker_error,
        "queues": [_queue(queue, states.get(queue), roster) for queue, roster in rosters.items()],
        "workers": [worker.to_json() for worker in workers.values()],
        "api": {"alive": len(api.alive), "gone": sorted(api.gone)},
        "breakers": [_breaker(model, api) for model in models_of(deployment)],
        "micro_batches": [
            {"model": model, **(deployment.hits.statistics(model, WINDOWS_S["5m"]).to_json()["micro_batch_rows"])}
            for model in models_of(deployment)
        ],
    }


def _breaker(model: str, api: Roster) -> dict[str, Any]:
    """Return the numbers of API processes that ask the model's workers, try it again, or ask nothing."""
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


#: page → function that reads its figures
READERS: Mapping[str, Callable[[Deployment, Choice], dict[str, Any]]] = {
    "hit-rates": read_hit_rates,
    "runs": read_runs,
    "differences": read_differences,
    "queues": read_queues,
    "cost": read_costs,
}
