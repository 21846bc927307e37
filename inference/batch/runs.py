"""Requests, shows, stops, resumes and rolls back runs: the one object behind API, CLI, tasks and workers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from inference import tracing
from inference.batch.active_set import ActiveSets
from inference.batch.change_feed import ChangeFeeds
from inference.batch.comparison.differ import Differ
from inference.batch.comparison.differences import DiffOptions, RunDiff
from inference.batch.delta import Deltas
from inference.batch.engines import make_engines
from inference.batch.ledger import Ledger
from inference.batch.paths import locate_source, run_folder
from inference.batch.plan import Planner
from inference.batch.publishing import Publisher, RunTables, bad_rows_of
from inference.batch.quarantine import QuarantineRetention
from inference.batch.reconciler import Reconciler
from inference.batch.records import Engine, RunDetails, RunRecord, RunState, RunView, Trigger
from inference.batch.selection import check_entities, pack_entities, since_of
from inference.batch.worker import ChunkWorker
from inference.batch.yielding import Yielding
from inference.clock import to_datetime
from inference.errors import BadInput, Conflict
from inference.logs import get_logger
from inference.models import Inspect, MicroBatches, ModelHost, ModelRegistry, inspect_in_subprocess
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import BatchSettings, Settings
from inference.store import Pointer, Table

log = get_logger(__name__)

#: how long a command waits until the reconciler has done a model's step
_WAIT_S = 5.0


@dataclass(frozen=True)
class Serving:
    """The generation and version that serve after a rollback or a release.

    `held_versions`: these are not activated again until somebody releases them, or forces a run of theirs.
    """

    model: str
    generation: int | None
    model_version: int | None
    held_versions: tuple[int, ...]

    @classmethod
    def of(cls, model: str, pointer: Pointer) -> Serving:
        """Return what a pointer says of a model."""
        return cls(model, pointer.current, pointer.active_version, tuple(sorted(pointer.held_versions)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


#: the states from which a run is resumed
_RESUMED = (RunState.FAILED, RunState.CANCELLED)


class Runs:
    """Runs of all models. Every method raises StoreUnavailable when Redis does not answer.

    Only `score` calls `host`. Three functions hand messages to the broker: `send_chunks(run_id, numbers)`, `poke()`,
    which wakes the reconciler, and `start_driver(run_id)`, which starts a Spark or Ray driver for the rest of a run.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        keys: Keys,
        registry: ModelRegistry,
        host: Callable[[], ModelHost],
        table: Callable[[TableKind, str], Table],
        send_chunks: Callable[[str, Sequence[int]], None],
        poke: Callable[[], None],
        *,
        start_driver: Callable[[str], None] | None = None,
        inspect: Inspect = inspect_in_subprocess,
    ) -> None:
        self._settings = settings
        self._tables = RunTables(table)
        self._ledger = Ledger(client, keys)
        self._retention = QuarantineRetention(settings, client, keys)
        engines = make_engines(settings, send_chunks, start_driver or _refuse_driver)
        give_way = Yielding(client, keys, settings.realtime_queues).give_way
        active_sets = ActiveSets(client, keys, give_way)
        deltas = Deltas(settings, self._ledger, self._tables.predictions, give_way)
        feeds = ChangeFeeds(settings, self._ledger, self._tables.predictions, give_way)
        self._planner = Planner(
            settings, self._ledger, registry, self._tables, active_sets, inspect, deltas, feeds, engines
        )
        self._differ = Differ(settings, self._ledger, self._tables, registry, give_way)
        publisher = Publisher(settings, self._ledger, keys, self._tables, deltas, self._differ.compare, give_way)
        self._reconciler = Reconciler(settings, self._ledger, self._tables, self._planner, publisher, engines)
        self._worker = ChunkWorker(
            settings, self._ledger, host, self._tables, poke, MicroBatches(registry), give_way=give_way
        )

    def request(
        self,
        model: str | None,
        *,
        trigger: Trigger,
        source: str | None = None,
        slot: str | None = None,
        entities: Sequence[str] | None = None,
        since: str | None = None,
        engine: str | None = None,
        delta: bool = False,
        hold: bool = False,
        model_version: int | None = None,
        shadow: bool = False,
    ) -> RunView:
        """Open a run; the reconciler does the rest. `model`: None means the only one in the settings.

        `source` replaces the model's own table for this run; the API may name only tables in the own table's folder.
        `slot`: the schedule's instant that the run serves. `entities` or `since` (an ISO 8601 instant, or a duration
        such as `6h`) make the run partial: it scores only those rows, into the overlay. `engine`: `celery`,
        `spark` or `ray`; None means the one in the model's settings. `delta`: score only the rows whose vectors changed
        since the run that serves, if that is possible. `hold`: the run waits before its publication, as it does if the
        settings say so; a partial run never waits. `shadow`: it only compares the predictions of `model_version` with
        what serves.

        Raises:
            UnknownModel: the settings do not name the model.
            BadInput: there is no source, or it is not allowed; there is no such engine; an id or `since` is not
                legal; the model has no event-time column for `since`; or the options exclude each other.
            Conflict: the model has a run in progress, or the slot was served already.
        """
        name, of_model = self._settings.model(model)
        scored_by = Engine.named(of_model.batch.engine if engine is None else engine)
        is_partial = entities is not None or since is not None
        if is_partial and not of_model.batch.prediction_table:
            raise BadInput("a partial run writes into the prediction table: turn prediction_table on")
        if delta and (is_partial or shadow):
            word = "a partial run scores the rows that you name" if is_partial else "a shadow run scores all rows"
            raise BadInput(f"{word}: leave delta out", field="delta")
        look = _look_before(of_model.batch, is_partial=is_partial, hold=hold, version=model_version, shadow=shadow)
        path = locate_source(self._settings, name, of_model, source, confined=trigger is Trigger.API)
        now = self._ledger.now()
        run_id = f"{name}-{to_datetime(now).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
        pattern = of_model.batch.quarantine_path
        quarantine = run_folder(self._settings, pattern, model=name, run_id=run_id, created_at=now)
        fields = {
            "trigger": trigger.value,
            "source": path,
            "quarantine_folder": quarantine,
            "engine": scored_by.value,
            "created_at": f"{now:.6f}",  # the instant of the folders' `{date}` too
            **look,
        }
        if delta:
            fields["delta"] = "1"
        if since is not None:
            fields["since"] = repr(since_of(name, of_model, since, now=now))
        if entities is not None:
            ids = check_entities(entities)
            fields["entities_asked"] = str(len(ids))
            self._ledger.plans.keep_entities(run_id, pack_entities(ids))
        self._retention.remember(name, run_id, quarantine)
        try:
            self._open(run_id, name, fields, slot)
        except Conflict:
            self._ledger.plans.forget_entities(run_id)
            self._retention.forget(name, run_id, quarantine)
            raise
        tracing.request_run(run_id)
        return self.show(run_id)

    def _open(self, run_id: str, model: str, fields: dict[str, str], slot: str | None) -> None:
        """Open a run; one of the schedule takes the place of a shadow run, which must cost no slot."""
        try:
            self._ledger.request(run_id, model, fields, slot=slot)
        except Conflict:
            active = self._ledger.active_run(model)
            if slot is None or active is None or not (run := self._ledger.load(active)).shadow:
                raise
            going = [RunState.QUEUED, RunState.RUNNING, RunState.PUBLISHING]
            error = f"run {run_id} of the schedule took its place: start it again"
            self._ledger.move(run, RunState.CANCELLED, expected=going, error=error)
            self._ledger.request(run_id, model, fields, slot=slot)

    def prepare(self, run_id: str) -> None:
        """Plan a queued run and send its first chunks. May run twice.

        Raises:
            NotFound: there is no such run.
        """
        self._reconciler.prepare(run_id)

    def score(self, run_id: str, chunk_number: int) -> None:
        """Score one chunk and stage its predictions. Safe to run twice."""
        self._worker.score(run_id, chunk_number)

    def reconcile(self, model: str | None = None) -> None:
        """Take the next step of every run, or of one model's. Safe to run twice, also at the same time."""
        self._reconciler.reconcile(model)
        for name in self._settings.models if model is None else [model]:
            self._retention.remove_due(name)

    def show(self, run_id: str) -> RunView:
        """Return one run.

        Raises:
            NotFound: there is no such run.
        """
        return RunView.of(self._ledger.load(run_id), now=self._ledger.now())

    def details(self, run_id: str) -> RunDetails:
        """Return one run with its chunks, its phases and the rows that it left out.

        Raises:
            NotFound: there is no such run.
        """
        record = self._ledger.load(run_id)
        now = self._ledger.now()
        bad = record.bad_rows
        if record.rows_quarantined and not bad:  # no gates were checked yet
            bad = bad_rows_of(self._ledger.results(run_id).values())
        chunks, can_resume = self._ledger.chunk_states(run_id), self._can_resume(record, now)
        return RunDetails.look_at(record, chunks, bad, can_resume=can_resume, now=now)

    def _can_resume(self, run: RunRecord, now: float) -> bool:
        """Tell whether a resume can do the rest, without a look at the source. A gate refuses the same rows again."""
        if run.state not in _RESUMED or not all(gate.passed for gate in run.gates):
            return False
        of_model = self._settings.models.get(run.model)
        if of_model is None or not run.keeps_rows(now, of_model.batch.resumable):
            return False
        return self._ledger.active_run(run.model) is None and self._tables.are_loading(run)

    def in_progress(self, model: str) -> RunView | None:
        """Return the model's run that is not over yet, or None."""
        run_id = self._ledger.active_run(model)
        return self.show(run_id) if run_id else None

    def list(self, model: str | None = None, limit: int = 50) -> Sequence[RunView]:
        """Return the newest runs, the newest first. `model`: None means all models.

        Raises:
            UnknownModel: the settings do not name the model.
        """
        names = list(self._settings.models) if model is None else [self._settings.model(model)[0]]
        now = self._ledger.now()
        records = [record for name in names for record in self._ledger.newest(name, limit)]
        records.sort(key=lambda record: record.created_at, reverse=True)
        return [RunView.of(record, now=now) for record in records[:limit]]

    def cancel(self, run_id: str) -> RunView:
        """Stop a run: workers drop their chunks at the next window; the current generation goes on serving.

        Raises:
            NotFound: there is no such run.
            Conflict: the run is over and does not wait for its publication, or is being published.
        """
        run = self._ledger.load(run_id)
        self._ledger.move(run, RunState.CANCELLED, expected=[RunState.QUEUED, RunState.RUNNING, RunState.HELD])
        return self.show(run_id)

    def resume(self, run_id: str) -> RunView:
        """Resume a failed or cancelled run: workers score only the chunks that are not done.

        The calling process opens the source.

        Raises:
            NotFound: there is no such run.
            SourceError: the source is gone, or this process cannot read it.
            Conflict: the run neither failed nor was cancelled; its source, model or settings changed; its predictions
                were removed; or another run of the model is in progress.
        """
        run = self._ledger.load(run_id)
        if run.state not in _RESUMED:
            raise Conflict(f"run {run_id} is {run.state}, not failed or cancelled", field="run_id")
        changed = self._planner.changes(run)
        if changed:
            raise Conflict(f"run {run_id} cannot go on, start a new one: {'; '.join(changed)}", field="run_id")
        state = RunState.RUNNING if run.fingerprint else RunState.QUEUED
        self._reopen(run, state, expected=_RESUMED)
        return self.show(run_id)

    def publish(self, run_id: str, *, force: bool = False, by: str = "unknown") -> RunView:
        """Publish a held run, or one that failed at its gates; the reconciler does it within seconds.

        A held run must pass its gates again. `force` overrides the gates. The run's record keeps who approved or forced
        it (`by`) and when. If a rollback holds the run's model version back, a forced publication ends that.

        Raises:
            NotFound: there is no such run.
            Conflict: the run is not held, and `force` is false or the run did not fail at its gates; its predictions
                were removed; or another run of the model is in progress.
        """
        run = self._ledger.load(run_id)
        if run.state is not RunState.HELD:
            _check_can_be_forced(run, force=force)
        now = f"{self._ledger.now():.6f}"
        told = {"forced_by": by, "forced_at": now} if force else {}
        if run.state is RunState.HELD:
            told |= {"approved_by": by, "approved_at": now}
        self._reopen(run, RunState.PUBLISHING, expected=[run.state], **told)
        if force:
            log.warning("run.forced", run_id=run_id, by=by)
        else:
            log.info("run.approved", run_id=run_id, by=by)
        return self.show(run_id)

    def diff(self, run_id: str, options: DiffOptions | None = None) -> RunDiff:
        """Compare a run with what serves, or served before it, and keep the result with the run. Takes seconds.

        `options`: a threshold of None is that of the settings. Once the rows are gone from Redis, returns the kept
        result.

        Raises:
            NotFound: there is no such run.
            Conflict: there is nothing to compare: the run is partial, not scored yet, or its rows are gone.
            BadInput: it has other outputs than what serves, or its source lacks the segment column.
        """
        return self._differ.compare_or_recall(self._ledger.load(run_id), options or DiffOptions())

    def check_diff(self, run_id: str, options: DiffOptions) -> RunView:
        """Return a run that can be compared now.

        Raises: see `diff`.
        """
        run = self._ledger.load(run_id)
        self._differ.check(run, options)
        return RunView.of(run, now=self._ledger.now())

    def was_compared(self, run_id: str) -> bool:
        """Return whether a comparison of a run is kept."""
        return self._ledger.diff(run_id) is not None

    def kept_diff(self, run_id: str) -> RunDiff | None:
        """Return the last comparison of a run; None if there is none.

        Raises:
            NotFound: there is no such run.
        """
        return self._differ.kept(self._ledger.load(run_id).run_id)

    def rollback(self, model: str | None = None, *, generation: int | None = None) -> Serving:
        """Serve the previous generation again, and hold back the model version that served.

        If the same run had published features too, the previous features serve again as well.
        `generation`: the generation to go back from; None means the current one.

        Raises:
            UnknownModel: the settings do not name the model.
            Conflict: there is no previous generation, or another one serves (by now).
        """
        name, _ = self._settings.model(model)
        return Serving.of(name, self._tables.roll_back(name, generation))

    def release(self, model: str | None = None, *, version: int | None = None) -> Serving:
        """End the hold of a rollback: the version answers again, and the next run scores with it.

        `version`: None means the newest held version.

        Raises:
            UnknownModel: the settings do not name the model.
            Conflict: no such version is held back.
        """
        name, _ = self._settings.model(model)
        table = self._tables.predictions(name)
        held = table.pointer().held_versions
        if not held or (version is not None and version not in held):
            names = ", ".join(map(str, sorted(held))) or "none"
            raise Conflict(f"model {name!r} holds no such version back; held: {names}", field="version")
        table.versions.activate(max(held) if version is None else version, force=True)
        return Serving.of(name, table.pointer())

    def _reopen(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str) -> None:
        with self._reconciler.holding(run.model, wait_s=_WAIT_S) as held:  # the collector must not run meanwhile
            if not held:
                raise Conflict(f"model {run.model!r} is being worked on: try again in a moment", field="run_id")
            if not self._tables.are_loading(run):
                raise Conflict(f"the predictions of run {run.run_id} were collected: start a new run", field="run_id")
            self._ledger.reopen(run, to, expected=expected, **fields)


def _check_can_be_forced(run: RunRecord, *, force: bool) -> None:
    if not force:
        raise Conflict(
            f"run {run.run_id} is {run.state}, not held: runs publish themselves; --force overrides their gates",
            field="run_id",
        )
    if run.state is not RunState.FAILED or not run.gates or run.chunks_done != run.chunks_total:
        raise Conflict(f"run {run.run_id} is {run.state} and was not refused by its gates", field="run_id")


def _look_before(
    batch: BatchSettings, *, is_partial: bool, hold: bool, version: int | None, shadow: bool
) -> dict[str, str]:
    """Return the fields of a run that is looked at before, or instead of, its publication.

    Raises:
        BadInput: the options exclude each other, or the settings.
    """
    if shadow and version is None:
        raise BadInput(
            "a shadow run scores a version that does not serve: name it as its model_version", field="model_version"
        )
    if version is not None and not shadow:
        raise BadInput(
            "model_version is for shadow runs: other runs score the version that serves", field="model_version"
        )
    if is_partial and (hold or shadow):
        word = "shadow" if shadow else "hold"
        raise BadInput(f"{word} goes with a run of the whole table, not with entities or since", field=word)
    if shadow and hold:
        raise BadInput("a shadow run is never published, so there is nothing to hold", field="hold")
    if shadow and not batch.prediction_table:
        raise BadInput("a shadow run compares the prediction tables: turn prediction_table on", field="shadow")
    if shadow:
        return {"shadow": "1", "model_version": str(version)}
    return {"hold": "1"} if (hold or batch.hold) and not is_partial else {}


def _refuse_driver(run_id: str) -> NoReturn:
    raise BadInput(f"this process starts no driver for run {run_id}", field="engine")
