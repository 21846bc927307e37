"""`/metrics` for Prometheus, and `/hit-rate`: the figures of the dashboard, for machines.

All figures are in Redis and at the broker, and every API process reads the same. So Prometheus may scrape any of them,
and the counters survive restarts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from app.api.problems import documented
from app.api.process import NamedModel, Process
from app.api.request_bodies import JsonRoute, operation_id
from app.api.schemas import HitRateBody, JsonResponse
from inference.batch import RunState
from inference.deployment import Deployment
from inference.errors import BrokerUnavailable
from inference.monitoring.counters import (
    CALLS,
    FALLBACKS,
    PARITY,
    Histogram,
    ParityResult,
    counts_of_kind,
    version_latency,
)
from inference.monitoring.presence import API_PROCESSES, LISTENERS, Roster
from inference.monitoring.statistics import MAX_WINDOW_S, USUAL_WINDOW_S, Statistics
from inference.outcomes import Outcome
from inference.serving.worker_client import BreakerState
from inference.store import Manifest, Pointer

router = APIRouter(route_class=JsonRoute, generate_unique_id_function=operation_id)

#: period of `forecache_hit_ratio`, in seconds
WINDOW_S = 300
#: buckets of ours in one of Prometheus' buckets: all 64 for each model and quantity would be too many
_MERGED = 4
#: ends the HELP text of metrics that a sum over processes would count twice
_DEPLOYMENT_WIDE = "Of the whole deployment: take max over API processes."


class HitCollector(Collector):
    """The outcomes, latencies and ages of every model's answers."""

    def __init__(self, deployment: Deployment) -> None:
        self._hits = deployment.hits
        self._models = list(deployment.settings.models)

    def collect(self) -> Iterator[Metric]:
        """Yield all-time counters, and the hit rate of the last five minutes."""
        answered = _counter("predictions", "Requests for one entity, by outcome.", "outcome")
        ratio = _of_model(
            "forecache_hit_ratio",
            "Share of the last five minutes' requests that were answered from the store and fresh, those for unknown "
            "entities not counted; absent without any.",
        )
        hit_latency = _histogram("hit_latency_seconds", "How long requests took that the store answered.")
        miss_latency = _histogram("miss_latency_seconds", "How long all other requests took.")
        fallbacks = _counter(
            "fallback_entities", "Entities that a fallback was asked for, by what it said.", "fallback", "outcome"
        )
        parity = _counter(
            "parity_answers",
            "Answers computed again the other way: agreed, disagreed (a defect), or drifted (of another vector).",
            "path",
            "result",
        )
        age = _histogram("prediction_age_seconds", "How old predictions were when they were answered.")
        for model in self._models:
            totals = self._hits.totals(model)
            for (name, said), count in counts_of_kind(totals, FALLBACKS).items():
                fallbacks.add_metric([model, name, said], count)
            again = counts_of_kind(totals, PARITY)
            for path, result in product(("batch", "realtime"), ParityResult):
                # also 0, before the first one: Prometheus sees no increase when a counter appears
                parity.add_metric([model, path, result.value], again.get((path, result.value), 0))
            ever = Statistics.of(totals)
            for outcome, count in ever.counts.outcomes.items():
                answered.add_metric([model, outcome.value], count)
            recent = self._hits.read(model, WINDOW_S)
            if recent.hit_rate is not None:
                ratio.add_metric([model], recent.hit_rate)
            histograms = ever.hit_latency, ever.miss_latency, ever.age
            for family, histogram in zip((hit_latency, miss_latency, age), histograms, strict=True):
                family.add_metric([model], _cumulative(histogram, _MERGED), sum_value=histogram.sum)
        yield from (answered, ratio, hit_latency, miss_latency, age, fallbacks, parity)


class PromiseCollector(Collector):
    """What the advice promised for yesterday, and what came."""

    def __init__(self, deployment: Deployment) -> None:
        self._promises = deployment.promises
        self._models = list(deployment.settings.models)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; a figure that is not known is absent."""
        hit_ratio, cost = (
            GaugeMetricFamily(name, text, labels=["model", "kind"])
            for name, text in (
                ("forecache_yesterday_hit_ratio", "Hit rate of the last whole day (UTC): promised, or came."),
                ("forecache_yesterday_cost", "Cost of the last whole day, in the prices' currency: promised, or came."),
            )
        )
        for model in self._models:
            [yesterday] = self._promises.days(model, 1)
            for kind, figures in (("promised", yesterday.promised), ("came", yesterday.came)):
                if figures is not None and figures.hit_rate is not None:
                    hit_ratio.add_metric([model, kind], figures.hit_rate)
                if figures is not None and figures.cost is not None:
                    cost.add_metric([model, kind], figures.cost)
        yield from (hit_ratio, cost)


#: a shadow run says nothing about what serves; few follow each other
_RUNS_SEEN = 10


class RunCollector(Collector):
    """The newest run of every model that may serve."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; a model without a run has none."""
        states = GaugeMetricFamily(
            "forecache_last_run_state", "1 for the state that the newest run is in.", labels=["model", "state"]
        )
        asked_at = _of_model("forecache_last_run_created_timestamp_seconds", "When the newest run was asked for.")
        rows = _of_model("forecache_last_run_rows", "Rows of the newest run's source, once it is planned.")
        done = _of_model("forecache_last_run_rows_done", "Rows that the newest run is done with.")
        quarantined = _of_model("forecache_last_run_rows_quarantined", "Rows that the newest run could not score.")
        outside = _of_model("forecache_last_run_rows_outside", "Rows outside the newest run's active set.")
        for model in self._deployment.settings.models:
            runs = self._deployment.runs.list(model, limit=_RUNS_SEEN)
            if run := next((run for run in runs if not run.shadow), None):
                for state in RunState:
                    states.add_metric([model, state.value], state is run.state)
                asked_at.add_metric([model], run.created_at)
                if run.rows_total is not None:
                    rows.add_metric([model], run.rows_total)
                done.add_metric([model], run.rows_done)
                quarantined.add_metric([model], run.rows_quarantined)
                outside.add_metric([model], run.rows_outside)
        yield from (states, asked_at, rows, done, quarantined, outside)


class ServingCollector(Collector):
    """The generation that serves."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; a model without a generation has none."""
        generation = _of_model("forecache_generation", "Number of the generation that serves.")
        version = _of_model("forecache_generation_model_version", "Model version that computed that generation.")
        created_at = _of_model("forecache_generation_created_timestamp_seconds", "When that generation was begun.")
        expires_at = _of_model("forecache_generation_expires_timestamp_seconds", "When Redis forgets that generation.")
        for model in self._deployment.settings.models:
            _, manifest = _serving(self._deployment, model)
            if manifest is not None:
                generation.add_metric([model], manifest.number)
                version.add_metric([model], manifest.model_version)
                created_at.add_metric([model], manifest.created_at)
                expires_at.add_metric([model], manifest.deadline)
        yield from (generation, version, created_at, expires_at)


class VersionCollector(Collector):
    """How each model version in service fares: its answers, its failures, its latencies.

    In service are the versions that live workers hold, the active one, and that of the generation that serves. So a
    model has few of them, however many there have been.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; a model without a version has none."""
        active = _of_model("forecache_active_model_version", "Model version that computes answers on demand.")
        answered = _counter(
            "version_predictions", "Requests that got a prediction of this version, by outcome.", "version", "outcome"
        )
        failures = _counter(
            "version_failures", "Rows that real-time workers could not compute, by this version's fault.", "version"
        )
        latency = _histogram(
            "version_latency_seconds",
            "From a task of real-time workers to its answer, by the called version.",
            "version",
        )
        rosters = [self._deployment.presence.roster(queue) for queue in self._deployment.settings.queues]
        for model in self._deployment.settings.models:
            pointer, manifest = _serving(self._deployment, model)
            if pointer.active_version is not None:
                active.add_metric([model], pointer.active_version)
            served = [pointer.active_version, manifest.model_version if manifest else None]
            held = [version for one in rosters for worker in one.alive for version in worker.versions.get(model, ())]
            versions = {version for version in (*served, *held) if version is not None}
            totals = self._deployment.hits.totals(model)
            by_version = Statistics.of(totals).versions
            for version in sorted(versions):
                labels = [model, str(version)]
                outcomes = by_version[version].outcomes if version in by_version else {}
                for outcome in _OF_VERSIONS:
                    # also 0, as for parity
                    answered.add_metric([*labels, outcome.value], outcomes.get(outcome, 0))
                failures.add_metric(labels, totals.get(f"{CALLS}:{version}:failed", 0))
                took = version_latency(version).histogram(totals)
                latency.add_metric(labels, _cumulative(took), sum_value=took.sum)
        yield from (active, answered, failures, latency)


#: the outcomes of answers that a version computed
_OF_VERSIONS = (Outcome.HIT_BATCH, Outcome.HIT_REALTIME, Outcome.COMPUTED, Outcome.STALE, Outcome.PREVIOUS)


def _serving(deployment: Deployment, model: str) -> tuple[Pointer, Manifest | None]:
    table = deployment.predictions(model)
    pointer = table.pointer()
    return pointer, None if pointer.current is None else table.generations.manifest(pointer.current)


class QueueCollector(Collector):
    """The broker's queues, the workers that serve them, and the API processes that fill them."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those of queues are absent while the broker is away."""
        up = GaugeMetricFamily("forecache_broker_up", "Whether the broker told how full its queues are.")
        waiting = GaugeMetricFamily("forecache_queue_messages", "Messages that wait.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "forecache_queue_oldest_message_age_seconds",
            "For how long the oldest message has waited, 0 when none does; absent where the broker hides it.",
            labels=["queue"],
        )
        try:
            states = self._deployment.broker.queue_states()
        except BrokerUnavailable:  # `forecache_broker_up` says so
            states = ()
            up.add_metric([], 0)
        else:
            up.add_metric([], 1)
        for state in states:
            waiting.add_metric([state.queue], state.depth)
            age_s = state.oldest_age_s if state.depth else 0
            if age_s is not None:
                oldest.add_metric([state.queue], age_s)
        yield from (up, waiting, oldest)
        presence, settings = self._deployment.presence, self._deployment.settings
        rosters = {queue: presence.roster(queue) for queue in settings.queues}
        yield _workers(rosters)
        yield from _gpus(rosters.values())
        yield from _api_processes(presence.roster(API_PROCESSES), list(settings.models))


class StreamCollector(Collector):
    """What became of the messages of streams, and how far their listeners are behind."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; none without streams, and no lag that nobody has told lately."""
        streams = self._deployment.settings.streams
        if not streams:
            return
        messages = CounterMetricFamily(
            "forecache_stream_messages",
            f"Messages of a stream that were applied, older than what is stored, or dead. {_DEPLOYMENT_WIDE}",
            labels=["stream", "outcome"],
        )
        behind = GaugeMetricFamily(
            "forecache_stream_lag_messages", "Messages that are not stored yet.", labels=["stream"]
        )
        behind_s = GaugeMetricFamily(
            "forecache_stream_lag_seconds",
            "For how long the oldest of these has waited, 0 without any.",
            labels=["stream"],
        )
        for name in streams:
            progress = self._deployment.stream_progress(name)
            for outcome, count in progress.counts().items():
                messages.add_metric([name, outcome], count)
            lag = progress.lag()
            if lag is not None:
                behind_s.add_metric([name], lag.oldest_s)
                if lag.messages is not None:
                    behind.add_metric([name], lag.messages)
        listeners = GaugeMetricFamily("forecache_stream_listeners", "Processes that listen to streams.")
        listeners.add_metric([], len(self._deployment.presence.roster(LISTENERS).alive))
        yield from (messages, behind, behind_s, listeners)


def _workers(rosters: dict[str, Roster]) -> Metric:
    workers = GaugeMetricFamily(
        "forecache_workers",
        "Workers that are ready, starting, deaf to the broker, or went without a word.",
        labels=["queue", "state"],
    )
    for queue, roster in rosters.items():
        ready = sum(worker.ready for worker in roster.alive)
        deaf = sum(worker.deaf for worker in roster.alive)
        starting = len(roster.alive) - ready - deaf
        counts = {"ready": ready, "starting": starting, "deaf": deaf, "gone": len(roster.gone)}
        for state, count in counts.items():
            workers.add_metric([queue, state], count)
    return workers


def _api_processes(roster: Roster, models: Sequence[str]) -> Iterator[Metric]:
    processes = GaugeMetricFamily("forecache_api_processes", "API processes that answer requests.")
    processes.add_metric([], len(roster.alive))
    breakers = GaugeMetricFamily(
        "forecache_api_breakers",
        "API processes by the state of their breaker: open ones ask the model's workers nothing.",
        labels=["model", "state"],
    )
    for model in models:
        states = Counter(process.breakers.get(model) for process in roster.alive)
        for state in BreakerState:
            breakers.add_metric([model, state.value], states[state.value])
    yield from (processes, breakers)


def _gpus(rosters: Iterable[Roster]) -> Iterator[Metric]:
    used, total, busy = (
        GaugeMetricFamily(name, text, labels=["host", "gpu"])
        for name, text in (
            ("forecache_gpu_memory_used_bytes", "Memory of a worker's GPU in use, by all processes."),
            ("forecache_gpu_memory_bytes", "Memory of a worker's GPU."),
            ("forecache_gpu_busy_ratio", "Share of the last second that a worker's GPU computed."),
        )
    )
    # several workers may share a GPU
    seen = {(worker.host, str(gpu.index)): gpu for one in rosters for worker in one.alive for gpu in worker.gpus}
    for labels, gpu in seen.items():
        used.add_metric(labels, gpu.memory_used)
        total.add_metric(labels, gpu.memory_total)
        busy.add_metric(labels, gpu.busy_share)
    yield from (used, total, busy)


def _of_model(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model"])


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"forecache_{name}", f"{text} {_DEPLOYMENT_WIDE}", labels=["model", *labels])


def _histogram(name: str, text: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"forecache_{name}", f"{text} {_DEPLOYMENT_WIDE}", labels=["model", *labels])


def _cumulative(counted: Histogram, merged: int = 1) -> list[tuple[str, float]]:
    """Return Prometheus' buckets: each upper bound, and the number of values up to it. `merged`: ours in each."""
    bounds, counts = counted.scale.bounds, counted.counts
    ends = range(merged - 1, len(bounds), merged)
    return [*((f"{bounds[n]:.4g}", sum(counts[: n + 1])) for n in ends), ("+Inf", counted.total)]


#: all that `/metrics` consists of
COLLECTORS = (
    HitCollector,
    PromiseCollector,
    RunCollector,
    ServingCollector,
    VersionCollector,
    QueueCollector,
    StreamCollector,
)


class MetricsResponse(Response):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST


@router.get("/metrics", response_class=MetricsResponse, responses=documented(503), tags=["metrics"])
async def get_metrics(process: Process) -> Response:
    """Return the metrics in Prometheus' text format."""
    deployment = process.deployment
    collectors = [kind(deployment) for kind in COLLECTORS]

    def scrape() -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            registry.register(collector)
        return generate_latest(registry)

    return MetricsResponse(await process.in_thread(scrape))


@router.get("/hit-rate", response_model=HitRateBody, responses=documented(400, 404, 503), tags=["hits"])
async def get_hit_rate(
    process: Process,
    model: NamedModel,
    window_s: Annotated[int, Query(ge=1, le=MAX_WINDOW_S)] = USUAL_WINDOW_S,
) -> Response:
    """Return the outcomes of a model's requests, for all minutes that the last `window_s` seconds touch."""
    found = await process.in_thread(lambda: process.deployment.hits.statistics(model, window_s))
    counts = found.counts.to_json() | {"versions": found.versions_json()}
    return JsonResponse({"model": model, "window_s": window_s, **counts})
