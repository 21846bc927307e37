"""Moves runs on: plans, sends and re-sends chunks, publishes, collects. Idempotent, anywhere, any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from inference import tracing
from inference.batch.engines import ChunkEngine
from inference.batch.ledger import Ledger, is_the_runs_fault
from inference.batch.plan import Planner
from inference.batch.publishing import Publisher, RunTables, sweep
from inference.batch.records import Engine, RunRecord, RunState
from inference.errors import Conflict, NotFound, StoreFull
from inference.failures import Failures, sentence_of
from inference.logs import bound, get_logger
from inference.redis.keys import TableKind
from inference.settings import Settings
from inference.store import GenerationState, Manifest

log = get_logger(__name__)

_LOST = (
    "the cache Redis lost its data while the run was going on (restarted empty, or flushed): nothing was published, "
    "start a new run"
)


@dataclass
class Reconciler:
    """Looks at each model's run in progress and takes the next step."""

    settings: Settings
    ledger: Ledger
    tables: RunTables
    planner: Planner
    publisher: Publisher
    engines: Mapping[Engine, ChunkEngine]
    #: model → its run in progress as this process last saw it, to notice when Redis lost it
    seen: dict[str, RunRecord] = field(default_factory=dict)
    failures: Failures = field(default_factory=lambda: Failures(__name__, "reconcile"))

    def reconcile(self, model: str | None = None) -> None:
        """Move a model's run on; None: those of all models at once, so that a slow one holds up no other.

        A model's failure is logged, once while it repeats, and does not stop the others.

        Raises:
            StoreUnavailable: Redis does not answer at all.
        """
        self.ledger.now()  # asks Redis before anything else
        models = list(self.settings.models) if model is None else [model]
        if len(models) == 1:
            self._round(models[0])
            return
        with ThreadPoolExecutor(max(len(models), 1), thread_name_prefix="reconcile") as threads:
            list(threads.map(self._round, models))

    def _round(self, model: str) -> None:
        with self._step(model, "lock"), self.holding(model) as held:
            if held:
                with self._step(model, "give_up"):
                    self.ledger.end_held(model, self._waited_too_long)
                    self._give_up_old(model)
                with self._step(model, "advance"):
                    self._advance(model)
        with self._step(model, "collect"):
            self.tables.collect(model)

    @contextmanager
    def _step(self, model: str, step: str) -> Iterator[None]:
        """Log a step's failure and go on: a failed collection must not keep a run from ending."""
        with self.failures.kept_here(f"{model} {step}", model=model, step=step):
            try:
                yield
            except Conflict as error:  # somebody else moved the run on first
                log.info("reconcile.overtaken", model=model, reason=error.message)

    def holding(self, model: str, *, wait_s: float = 0.0) -> AbstractContextManager[bool]:
        """Hold a model's lock within the block; yields False when another process still has it after `wait_s`."""
        return self.ledger.lock(model).holding(f"reconciler of {model}", wait_s=wait_s)

    def prepare(self, run_id: str) -> None:
        """Plan a queued run now, unless another process works on the model: that one plans it then."""
        run = self.ledger.load(run_id)
        with self.holding(run.model) as held:
            if held:
                self._advance(run.model)

    def _advance(self, model: str) -> None:
        run_id = self.ledger.active_run(model)
        self._notice_loss(model, run_id)
        if run_id is None:
            return
        try:
            run = self.ledger.load(run_id)
        except NotFound:
            self.ledger.forget_active(model, run_id)
            return
        self.seen[model] = run
        try:
            with bound(run_id=run_id):
                self._advance_run(run)
        except StoreFull as error:
            self.ledger.fail_for_memory(run_id, error)
        except Exception as error:
            if not is_the_runs_fault(error):
                raise
            log.exception("run.failed", run_id=run_id)
            going = [RunState.QUEUED, RunState.RUNNING, RunState.PUBLISHING]
            self.ledger.move(run, RunState.FAILED, expected=going, error=f"it cannot go on: {sentence_of(error)}")

    def _advance_run(self, run: RunRecord) -> None:
        run.check_format()
        if run.state is RunState.QUEUED:
            with tracing.run_span(run.run_id, "plan", {}):
                self.planner.plan(run)
            run = self.ledger.load(run.run_id)
        if run.state is RunState.RUNNING:
            run = self._move_chunks(run)
        self.seen[run.model] = run
        if run.state is RunState.PUBLISHING:
            with tracing.run_span(run.run_id, "publish", {}):
                self.publisher.publish(run)

    def _notice_loss(self, model: str, active: str | None) -> None:
        """Fail the run that Redis has lost with its data; only this process still remembers it."""
        seen = self.seen.get(model)
        if seen is None:
            return
        try:
            self.ledger.load(seen.run_id)
        except NotFound:
            log.error("run.lost", model=model, run_id=seen.run_id)  # noqa: TRY400 - there is nothing to trace
            self.ledger.record_loss(seen, _LOST)
        if active != seen.run_id:
            self.seen.pop(model, None)

    def _move_chunks(self, run: RunRecord) -> RunRecord:
        if run.chunks_done == run.chunks_total:
            self.ledger.move(run, RunState.PUBLISHING, expected=[RunState.RUNNING])
            return self.ledger.load(run.run_id)
        engine = self.engines[run.engine]
        due = self.ledger.dispatch(run.run_id, max_in_flight=engine.most_in_flight(run))
        if due.exhausted is not None:
            last_error = run.last_error or "nothing, since its worker died"
            error = f"chunk {due.exhausted} failed at every attempt; the last said: {last_error}"
            log.warning("run.failed", run_id=run.run_id, error=error)
            self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error)
        elif due.chunks:
            engine.hand_over(run.run_id, due.chunks)
        return self.ledger.load(run.run_id)

    def _give_up_old(self, model: str) -> None:
        """Give up generations that no run can use any more; their rows are removed soon after."""
        for kind, manifest in self.tables.unpublished(model):
            if manifest.run_id:
                self._give_up(kind, manifest, model, manifest.run_id)

    def _give_up(self, kind: TableKind, manifest: Manifest, model: str, run_id: str) -> None:
        active = self.ledger.active_run(model)
        try:
            run = self.ledger.load(run_id)
        except NotFound:
            run = None
        fills_it = run is not None and run.generation_of(kind) == manifest.number
        if run and self._may_use_it(run, active, fills_it=fills_it):
            return
        cancelled = run is not None and run.state is RunState.CANCELLED
        self.tables.table(kind, model).generations.discard(
            manifest.number, GenerationState.CANCELLED if cancelled else GenerationState.FAILED
        )
        if run and active != run_id:  # workers that score a run again, planned anew, write there
            sweep(self.settings, run)
        if run and fills_it and run.vector_key:
            self.publisher.deltas.forget(model, run_id)
        log.info("generation.given_up", model=model, generation=manifest.number, run_id=run_id)

    def _may_use_it(self, run: RunRecord, active: str | None, *, fills_it: bool) -> bool:
        """Tell whether a run that opened a generation may still publish it. `fills_it`: its record names it."""
        if active == run.run_id and not run.fingerprint:  # it is being planned
            return True
        if not fills_it:
            return False
        resumable_s = self.settings.models[run.model].batch.resumable
        is_kept = active is None and run.keeps_rows(self.ledger.now(), resumable_s)
        return run.state is RunState.HELD or active == run.run_id or is_kept

    def _waited_too_long(self, run: RunRecord) -> str | None:
        """Return why a held run is given up; None while it may still be published."""
        batch, now = self.settings.models[run.model].batch, self.ledger.now()
        if now - run.created_at >= batch.keep:
            return "nobody published it before its predictions expired (`keep`): start a new run"
        if run.finished_at is not None and now - run.finished_at >= batch.resumable:
            return "nobody published it for as long as `resumable` says: start a new run"
        return None
