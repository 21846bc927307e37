"""Measures one model of a deployment: its runs, its requests, the bytes of its predictions in Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from inference.batch import Engine, RunState, RunView, slot_after
from inference.batch.ledger import Ledger
from inference.economics.estimate import SECONDS_PER_DAY
from inference.economics.inputs import Basis, Figure
from inference.errors import ModelUnavailable
from inference.features.groups import CLOCK_FUNCTIONS, GroupSource
from inference.models import ModelRegistry
from inference.monitoring.access_sample import AccessSample
from inference.monitoring.presence import Presence
from inference.monitoring.statistics import HitWindows, Statistics
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import BATCH_QUEUE, ModelSettings
from inference.store import Table
from inference.wording import counted

WINDOW_S = 24 * 3600
#: different entities are counted over so many days
ASKED_DAYS = 7
_RUNS_SEEN = 20
#: slots are counted from here
_DAY_FROM = 1_700_006_400.0  # a midnight in UTC, on a day without a change of clocks


@dataclass(frozen=True)
class Measured:
    """The measurements of one model; None or empty if there are none yet.

    `span_s`: seconds since the first request of the last 24 hours. `run_s`: median seconds of a published run.
    `asked_week`: number of different entities answered within seven days, within 0.81 %. `accesses`: a sample of the
    logged accesses.
    """

    model: str
    figures: dict[str, Figure] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=lambda: Statistics.of({}))
    span_s: float = 0.0
    runs_published: int = 0
    runs_failed: int = 0
    run_s: float | None = None
    asked_week: int = 0
    #: of the newest published run: rows outside its active set, and the share of requests that such a set answers
    rows_outside: int = 0
    entities_share: float | None = None
    accesses: AccessSample = field(default_factory=AccessSample.empty)
    #: groups of features that are computed from the present time, by the active version's contract
    clock_groups: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """The number of requested predictions within 24 hours."""
        return self.statistics.counts.total

    @property
    def entities(self) -> float | None:
        """The rows of the current generation."""
        figure = self.figures.get("entities")
        return None if figure is None else figure.value

    @property
    def never_read(self) -> float | None:
        """About how many stored predictions nobody requested within a week; None if nothing was counted.

        The number is too small if answered entities are missing in the table.
        """
        if self.entities is None or not self.asked_week:
            return None
        return max(self.entities - self.asked_week, 0.0)

    def share_no_older_than(self, hours: float) -> float | None:
        """Return the share of answers with features of at most this age; None without answers.

        Adds the buckets of a histogram that are wholly below this age. Their bounds are 41 % apart.
        """
        ages = self.statistics.age
        if not ages.total:
            return None
        young = sum(n for bound, n in zip(ages.scale.bounds, ages.counts, strict=False) if bound <= hours * 3600)
        return young / ages.total


def measure(
    client: Client,
    keys: Keys,
    model: str,
    settings: ModelSettings,
    windows: HitWindows | None = None,
    now: float | None = None,
) -> Measured:
    """Return the measurements of a model; each figure says how it was found.

    `windows`: of a caller that measures repeatedly, since they remember past minutes. `now`: epoch seconds; by default
    Redis' time.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    ledger, windows = Ledger(client, keys), windows or HitWindows(client, keys)
    now = ledger.now() if now is None else now
    records = [record for record in ledger.newest(model, _RUNS_SEEN) if not (record.is_partial or record.shadow)]
    runs = [RunView.of(record, now=now) for record in records]
    published = [run for run in runs if run.state is RunState.PUBLISHED]
    workers = max(len(Presence(client, keys).roster(BATCH_QUEUE).alive), 1)
    requests, span_s = _requests(windows, model, now)
    figures = {
        **_schedule(settings),
        **_table(client, keys, model),
        **_runs(published, workers, {record.run_id: record.attempts for record in records}),
        **requests,
    }
    return Measured(
        model=model,
        figures=figures,
        statistics=windows.statistics(model, WINDOW_S),
        span_s=span_s,
        runs_published=len(published),
        runs_failed=sum(run.state is RunState.FAILED for run in runs),
        run_s=_median([run.took_s for run in published if run.took_s is not None]),
        asked_week=windows.asked(model, ASKED_DAYS),
        rows_outside=published[0].rows_outside if published else 0,
        entities_share=published[0].entities_share if published else None,
        accesses=windows.accesses(model, settings.access_log.days),
        clock_groups=_clock_groups(ModelRegistry(client, keys), model),
    )


def _clock_groups(registry: ModelRegistry, model: str) -> tuple[str, ...]:
    try:
        contract = registry.active(model).contract
    except ModelUnavailable:  # no worker has loaded it yet
        return ()
    computed = contract.groups_from(GroupSource.FUNCTION)
    return tuple(group.name for group in computed if group.function in CLOCK_FUNCTIONS)


def _median(values: list[float]) -> float | None:
    return median(values) if values else None


def _measured(value: float, how: str) -> Figure:
    return Figure(value, Basis.MEASURED, how)


def _schedule(settings: ModelSettings) -> dict[str, Figure]:
    schedule = settings.batch.schedule
    if schedule is None:
        return {}
    count = slots_a_week(schedule, settings.batch.timezone) / 7
    return {"runs_per_day": Figure(count, Basis.SETTINGS, f"schedule {schedule!r}")} if count else {}


def slots_a_week(schedule: str, timezone: str) -> float:
    """Return the number of runs in seven days; a fraction is possible."""
    at, end, count = _DAY_FROM - 1, _DAY_FROM - 1 + 7 * SECONDS_PER_DAY, 0
    while (following := slot_after(schedule, timezone, at)) <= end:
        if count == 100:  # for more than 100 slots, computes from the distance of two slots
            return 7 * SECONDS_PER_DAY / (following - at)
        at, count = following, count + 1
    # for less than one a week, computes from the distance of two slots
    return count or 7 * SECONDS_PER_DAY / (slot_after(schedule, timezone, following) - following)


def _table(client: Client, keys: Keys, model: str) -> dict[str, Figure]:
    table = Table(client, keys.table(TableKind.PREDICTIONS, model), kind=TableKind.PREDICTIONS, model=model)
    current = table.pointer().current
    manifest = None if current is None else table.generations.manifest(current)
    if manifest is None or not manifest.rows_expected:
        return {}
    figures = {"entities": _measured(manifest.rows_expected, f"rows of generation {manifest.number}")}
    row_bytes = table.generations.row_bytes(manifest)
    if row_bytes:
        figures["bytes"] = _measured(round(row_bytes, 2), "MEMORY USAGE of some of its buckets")
    return figures


def _runs(published: list[RunView], workers: int, attempts: dict[str, int]) -> dict[str, Figure]:
    if not published:
        return {}
    figures = {}
    # the speed of Spark's executors says nothing about a batch worker
    rates = [run.rows_per_s for run in published if run.rows_per_s and run.engine is Engine.CELERY]
    if rates:
        alive = counted(workers, "batch worker")
        how = f"median of {counted(len(rates), 'published run')}, over {alive} alive now"
        figures["throughput"] = _measured(median(rates) / workers, how)
    waited = _median([run.started_at - run.created_at for run in published if run.started_at is not None])
    if waited is not None:
        how = f"median of {counted(len(published), 'published run')}: from the request until planned"
        figures["startup_s"] = _measured(round(max(waited, 0.0), 3), how)
    chunks = sum(run.chunks_total or 0 for run in published)
    if chunks:
        again = max(sum(attempts[run.run_id] for run in published) / chunks - 1, 0.0)
        figures["retry_factor"] = _measured(round(again, 4), f"chunks taken up again, of {chunks}")
    return figures


def _requests(windows: HitWindows, model: str, now: float) -> tuple[dict[str, Figure], float]:
    """Return the figures of the last 24 hours, and the seconds since the first request in them."""
    points = windows.series(model, WINDOW_S)
    first = next((point for point in points if point.statistics.counts.total), None)
    if first is None:
        return {}, 0.0
    span_s = max(now - first.at, 60.0)
    total = sum(point.statistics.counts.total for point in points)
    mean, how = total / span_s, f"{counted(total, 'prediction')} in {span_s / 3600:.1f} h"
    step_s = points[1].at - points[0].at
    whole = [point.statistics.counts.total / step_s for point in points[:-1]]
    peak = max(mean, *whole)
    counts = windows.read(model, WINDOW_S)
    return {
        "rps": _measured(mean, how),
        "peak_rps": _measured(peak, f"the busiest {step_s // 60} minutes of 24 h"),
        "hit_rate": _measured(round(counts.hit_rate or 0.0, 6), how),
    }, span_s
