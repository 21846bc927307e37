"""The one object through which runs are asked for, worked on, watched and stopped."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis

from inference.batch.finalising import Finalising
from inference.batch.ledger import Ledger
from inference.batch.preparation import Preparation
from inference.batch.reconciler import Reconciler
from inference.batch.records import RunRecord, RunState, RunView, Trigger
from inference.batch.sources import locate_source
from inference.batch.work import ChunkWork
from inference.clock import to_datetime
from inference.errors import Conflict
from inference.keys import Keys
from inference.models import Inspect, MicroBatches, ModelHost, ModelRegistry, inspect_in_subprocess
from inference.settings import Settings
from inference.store import GenerationState, Table

#: how long a command waits for the reconciler to let go of a model
_WAIT_S = 5.0


@dataclass(frozen=True)
class Rollback:
    """What serves after a rollback."""

    model: str
    generation: int | None
    model_version: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class Runs:
    """Runs of all models. Every method raises StoreUnavailable when Redis does not answer.

    `host` is called only by `score`; `send_chunks(run_id, numbers)` and `poke()` hand messages to the broker.
    """

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        keys: Keys,
        registry: ModelRegistry,
        host: Callable[[], ModelHost],
        predictions: Callable[[str], Table],
        send_chunks: Callable[[str, Sequence[int]], None],
        poke: Callable[[], None],
        *,
        inspect: Inspect = inspect_in_subprocess,
    ) -> None:
        self._settings = settings
        self._predictions = predictions
        self._ledger = Ledger(client, keys)
        self._preparation = Preparation(settings, self._ledger, registry, predictions, inspect)
        finalising = Finalising(settings, self._ledger, keys, predictions)
        self._reconciler = Reconciler(settings, self._ledger, predictions, self._preparation, finalising, send_chunks)
        self._work = ChunkWork(settings, self._ledger, host, predictions, poke, MicroBatches(registry))

    def request(
        self, model: str | None, *, trigger: Trigger, source: str | None = None, slot: str | None = None
    ) -> RunView:
        """Open a run; the reconciler does the rest. None as the model means the only one configured.

        `source` replaces the model's own table for this run; from the API only what lies in that table's
        folder is allowed. `slot` names the schedule's instant that the run is for.

        Raises:
            UnknownModel: the model is not configured.
            BadInput: there is no source, or it is not allowed.
            Conflict: the model has a run in progress, or the slot was served already.
        """
        name, own = self._settings.model(model)
        path = locate_source(self._settings, name, own, source, confined=trigger is Trigger.API)
        stamp = to_datetime(self._ledger.now()).strftime("%Y%m%dT%H%M%S")
        run_id = f"{name}-{stamp}-{secrets.token_hex(3)}"
        self._ledger.request(run_id, name, {"trigger": trigger.value, "source": path}, slot=slot)
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

    def reconcile(self) -> None:
        """Move every run on by what is due. Safe to run twice, also at the same time."""
        self._reconciler.reconcile()

    def show(self, run_id: str) -> RunView:
        """Return one run.

        Raises:
            NotFound: there is no such run.
        """
        return RunView.of(self._ledger.load(run_id), now=self._ledger.now())

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

        Raises:
            NotFound: there is no such run.
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
        state = RunState.QUEUED if run.generation is None else RunState.RUNNING
        self._reopen(run, state, expected=over)
        return self.show(run_id)

    def publish(self, run_id: str, *, force: bool = False) -> RunView:
        """Publish a run that its gates refused. `force` must be given, and is recorded.

        Raises:
            NotFound: there is no such run.
            Conflict: `force` is not given, the run did not fail at its gates, its predictions were
                collected, or another run of the model is in progress.
        """
        run = self._ledger.load(run_id)
        if not force:
            raise Conflict(f"run {run_id} is {run.state}: runs publish themselves; --force overrides their gates")
        if run.state is not RunState.FAILED or not run.gates:
            raise Conflict(f"run {run_id} is {run.state} and was not refused by its gates", field="run_id")
        self._reopen(run, RunState.PUBLISHING, expected=[RunState.FAILED], forced="1")
        self._reconciler.prepare(run_id)
        return self.show(run_id)

    def rollback(self, model: str | None = None) -> Rollback:
        """Serve the previous generation again; the model version left behind is held until someone insists.

        Raises:
            UnknownModel: the model is not configured.
            Conflict: there is nothing to go back to, or a publication came in between.
        """
        name, _ = self._settings.model(model)
        table = self._predictions(name)
        current = table.pointer().current
        if current is None:
            raise Conflict(f"model {name!r} has no published generation", field="model")
        pointer = table.rollback(current)
        return Rollback(name, pointer.current, pointer.active_version)

    def _reopen(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str) -> None:
        with self._reconciler.holding(run.model, wait_s=_WAIT_S) as held:  # against the collector
            if not held:
                raise Conflict(f"model {run.model!r} is being worked on: try again in a moment", field="run_id")
            if run.generation is not None:
                state = self._predictions(run.model).state(run.generation)
                if state is not GenerationState.LOADING:
                    raise Conflict(
                        f"the predictions of run {run.run_id} were collected: start a new run", field="run_id"
                    )
            self._ledger.reopen(run, to, expected=expected, **fields)
