"""The one object through which runs are asked for, worked on, watched and stopped."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inference.batch.details import RunDetails
from inference.batch.engine import engine_of, refuse_spark
from inference.batch.finalising import Finalising, bad_rows_of
from inference.batch.folders import run_folder
from inference.batch.ledger import Ledger
from inference.batch.partial_request import check_entities, pack_entities, since_of
from inference.batch.preparation import Preparation
from inference.batch.reconciler import Reconciler
from inference.batch.records import RunRecord, RunState, RunView, Trigger
from inference.batch.retention import Retention
from inference.batch.sources import locate_source
from inference.batch.tables import RunTables
from inference.batch.work import ChunkWork
from inference.clock import to_datetime
from inference.errors import BadInput, Conflict
from inference.logs import get_logger
from inference.models import Inspect, MicroBatches, ModelHost, ModelRegistry, inspect_in_subprocess
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import Settings
from inference.store import Pointer, Table

log = get_logger(__name__)

#: how long a command waits for the reconciler to let go of a model
_WAIT_S = 5.0


@dataclass(frozen=True)
class Serving:
    """What serves after a rollback or a release. `held_versions`: not activated again until someone insists."""

    model: str
    generation: int | None
    model_version: int | None
    held_versions: tuple[int, ...]

    @classmethod
    def of(cls, model: str, pointer: Pointer) -> Serving:
        """Return what a pointer says."""
        return cls(model, pointer.current, pointer.active_version, tuple(sorted(pointer.held_versions)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class Runs:
    """Runs of all models. Every method raises StoreUnavailable when Redis does not answer.

    `host` is called only by `score`; `send_chunks(run_id, numbers)`, `poke()` and `start_spark(run_id)`, which
    has a Spark driver score what is left of a run, hand messages to the broker.
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
        start_spark: Callable[[str], None] = refuse_spark,
        inspect: Inspect = inspect_in_subprocess,
    ) -> None:
        self._settings = settings
        self._tables = RunTables(table)
        self._ledger = Ledger(client, keys)
        self._retention = Retention(settings, client, keys)
        self._preparation = Preparation(settings, self._ledger, registry, self._tables, inspect)
        finalising = Finalising(settings, self._ledger, keys, self._tables)
        self._reconciler = Reconciler(
            settings, self._ledger, self._tables, self._preparation, finalising, send_chunks, start_spark
        )
        self._work = ChunkWork(settings, self._ledger, host, self._tables, poke, MicroBatches(registry))

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
    ) -> RunView:
        """Open a run; the reconciler does the rest. None as the model means the only one configured.

        `source` replaces the model's own table for this run; from the API only what lies in that table's
        folder is allowed. `slot` names the schedule's instant that the run is for. `entities` or `since` (an ISO
        8601 instant, or a duration such as `6h`) make it partial: only those rows are scored, into the overlay.
        `engine`: `celery` or `spark`; None means what the model's settings say.

        Raises:
            UnknownModel: the model is not configured.
            BadInput: there is no source, or it is not allowed; there is no such engine; an id or `since` is not
                legal, or the model has no event-time column to compare with.
            Conflict: the model has a run in progress, or the slot was served already.
        """
        name, own = self._settings.model(model)
        by = engine_of(own.batch.engine if engine is None else engine)
        if (entities is not None or since is not None) and not own.batch.prediction_table:
            raise BadInput("only some rows are scored into the prediction table: turn prediction_table on")
        path = locate_source(self._settings, name, own, source, confined=trigger is Trigger.API)
        now = self._ledger.now()
        run_id = f"{name}-{to_datetime(now).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
        quarantine = run_folder(self._settings, own.batch.quarantine_path, model=name, run_id=run_id, created_at=now)
        fields = {"trigger": trigger.value, "source": path, "quarantine_folder": quarantine, "engine": by.value}
        # the folders' `{date}` and the record's instant are one
        fields["created_at"] = f"{now:.6f}"
        if since is not None:
            fields["since"] = repr(since_of(name, own, since, now=now))
        if entities is not None:
            asked = check_entities(entities)
            fields["entities_asked"] = str(len(asked))
            self._ledger.plans.keep_entities(run_id, pack_entities(asked))
        self._retention.remember(name, run_id, quarantine)
        try:
            self._ledger.request(run_id, name, fields, slot=slot)
        except Conflict:
            self._ledger.plans.forget_entities(run_id)
            self._retention.forget(name, run_id, quarantine)
            raise
        return self.show(run_id)

    def prepare(self, run_id: str) -> None:
        """Look at a queued run's model and source, plan it and send its first chunks. May run twice.

        Raises:
            NotFound: there is no such run.
        """
        self._reconciler.prepare(run_id)

    def score(self, run_id: str, chunk_number: int) -> None:
        """Score one chunk and stage its predictions. Safe to run twice."""
        self._work.score(run_id, chunk_number)

    def reconcile(self, model: str | None = None) -> None:
        """Move every run on by what is due, or one model's. Safe to run twice, also at the same time."""
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
        """Return all that is known of one run: its chunks, its phases, what it left out.

        Raises:
            NotFound: there is no such run.
        """
        record = self._ledger.load(run_id)
        now = self._ledger.now()
        bad = record.bad_rows
        if record.rows_quarantined and not bad:  # its gates were not checked yet
            bad = bad_rows_of(self._ledger.results(run_id).values())
        view = RunView.of(record, now=now)
        return RunDetails(view, record, self._ledger.chunk_states(run_id), bad, now)

    def in_progress(self, model: str) -> RunView | None:
        """Return the model's run that is not over yet, or None."""
        run_id = self._ledger.active_run(model)
        return self.show(run_id) if run_id else None

    def list(self, model: str | None = None, limit: int = 50) -> Sequence[RunView]:
        """Return the newest runs, the newest first; None as the model means all models.

        Raises:
            UnknownModel: the model is not configured.
        """
        names = list(self._settings.models) if model is None else [self._settings.model(model)[0]]
        now = self._ledger.now()
        records = [record for name in names for record in self._ledger.newest(name, limit)]
        records.sort(key=lambda record: record.created_at, reverse=True)
        return [RunView.of(record, now=now) for record in records[:limit]]

    def cancel(self, run_id: str) -> RunView:
        """Stop a run: workers drop their chunks at the next window, and what serves goes on serving.

        Raises:
            NotFound: there is no such run.
            Conflict: it is over, or being published.
        """
        run = self._ledger.load(run_id)
        self._ledger.move(run, RunState.CANCELLED, expected=[RunState.QUEUED, RunState.RUNNING])
        return self.show(run_id)

    def resume(self, run_id: str) -> RunView:
        """Take a failed or cancelled run up again: only the chunks that are not done are scored.

        The source is opened here, in the calling process.

        Raises:
            NotFound: there is no such run.
            SourceError: its source is gone, or cannot be read from here.
            Conflict: it neither failed nor was cancelled; its source, model or settings changed; its predictions
                were collected; or another run of the model is in progress.
        """
        run = self._ledger.load(run_id)
        over = [RunState.FAILED, RunState.CANCELLED]
        if run.state not in over:
            raise Conflict(f"run {run_id} is {run.state}, not failed or cancelled", field="run_id")
        changed = self._preparation.changes(run)
        if changed:
            raise Conflict(f"run {run_id} cannot go on, start a new one: {'; '.join(changed)}", field="run_id")
        state = RunState.RUNNING if run.fingerprint else RunState.QUEUED
        self._reopen(run, state, expected=over)
        return self.show(run_id)

    def publish(self, run_id: str, *, force: bool = False, by: str = "unknown") -> RunView:
        """Have a run published that its gates refused; the reconciler does it within seconds.

        `force` must be given; that it was, `by` whom and when, stays in the run. A model version that a rollback holds
        back is held no longer then.

        Raises:
            NotFound: there is no such run.
            Conflict: `force` is not given, the run did not fail at its gates, its predictions were
                collected, or another run of the model is in progress.
        """
        run = self._ledger.load(run_id)
        if not force:
            raise Conflict(f"run {run_id} is {run.state}: runs publish themselves; --force overrides their gates")
        if run.state is not RunState.FAILED or not run.gates or run.chunks_done != run.chunks_total:
            raise Conflict(f"run {run_id} is {run.state} and was not refused by its gates", field="run_id")
        now = f"{self._ledger.now():.6f}"
        self._reopen(run, RunState.PUBLISHING, expected=[RunState.FAILED], forced_by=by, forced_at=now)
        log.warning("run.forced", run_id=run_id, by=by)
        return self.show(run_id)

    def rollback(self, model: str | None = None, *, generation: int | None = None) -> Serving:
        """Serve the previous generation again; the model version left behind is held until someone insists.

        Features that the same run had published go back too.

        `generation`: the one to go back from; None means whichever serves now.

        Raises:
            UnknownModel: the model is not configured.
            Conflict: there is nothing to go back to, or another generation serves (by now).
        """
        name, _ = self._settings.model(model)
        return Serving.of(name, self._tables.roll_back(name, generation))

    def release(self, model: str | None = None, *, version: int | None = None) -> Serving:
        """End the hold of a rollback: the version answers again, and the next run scores with it.

        `version`: None means the newest that is held.

        Raises:
            UnknownModel: the model is not configured.
            Conflict: no such version is held.
        """
        name, _ = self._settings.model(model)
        table = self._tables.predictions(name)
        held = table.pointer().held_versions
        if not held or (version is not None and version not in held):
            told = ", ".join(map(str, sorted(held))) or "none"
            raise Conflict(f"model {name!r} holds no such version back; held: {told}", field="version")
        table.versions.activate(max(held) if version is None else version, force=True)
        return Serving.of(name, table.pointer())

    def _reopen(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str) -> None:
        with self._reconciler.holding(run.model, wait_s=_WAIT_S) as held:  # against the collector
            if not held:
                raise Conflict(f"model {run.model!r} is being worked on: try again in a moment", field="run_id")
            if not self._tables.are_loading(run):
                raise Conflict(f"the predictions of run {run.run_id} were collected: start a new run", field="run_id")
            self._ledger.reopen(run, to, expected=expected, **fields)
