"""Moves runs on: prepares, sends and re-sends chunks, finalises, collects. Idempotent, anywhere, any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference.batch.engine import Engine
from inference.batch.finalising import Finalising, sweep
from inference.batch.leases import Lease
from inference.batch.ledger import Ledger
from inference.batch.outages import is_the_runs_fault
from inference.batch.preparation import Preparation
from inference.batch.records import RunRecord, RunState
from inference.batch.tables import RunTables
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


@dataclass(frozen=True)
class Reconciler:
    """Looks at each model's run in progress and does what is due."""

    settings: Settings
    ledger: Ledger
    tables: RunTables
    preparation: Preparation
    finalising: Finalising
    send_chunks: Callable[[str, Sequence[int]], None]
    start_spark: Callable[[str], None]
    #: model → its run in progress as this process last saw it
    seen: dict[str, RunRecord] = field(default_factory=dict)
    failures: Failures = field(default_factory=lambda: Failures(__name__, "reconcile"))

    def reconcile(self, model: str | None = None) -> None:
        """Move a model's run on; None for every model's, each by itself, so that a slow one holds up no other.

        A failure for one model is logged, once while it repeats, and does not stop the others.

        Raises:
            StoreUnavailable: Redis does not answer, whichever the model.
        """
        self.ledger.now()
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
                    self._give_up_old(model)
                with self._step(model, "advance"):
                    self._advance(model)
        with self._step(model, "collect"):
            self.tables.collect(model)

    @contextmanager
    def _step(self, model: str, step: str) -> Iterator[None]:
        """Keep a step's failure to itself: what cannot be collected must not keep a run from ending."""
        with self.failures.kept_here(f"{model} {step}", model=model, step=step):
            try:
                yield
            except Conflict as error:  # somebody else moved the run on first
                log.info("reconcile.overtaken", model=model, reason=error.message)

    @contextmanager
    def holding(self, model: str, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the model's lock, kept alive while it takes; yields False when another process has it."""
        lock = self.ledger.lock(model)
        taken = lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None)
        if not taken:
            yield False
            return
        try:
            with Lease(lock.renew, name=f"reconciler of {model}"):
                yield True
        finally:
            lock.let_go()

    def prepare(self, run_id: str) -> None:
        """Prepare a queued run now, unless the model is being looked after already (then that will do it)."""
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
            self.preparation.prepare(run)
            run = self.ledger.load(run.run_id)
        if run.state is RunState.RUNNING:
            run = self._move_chunks(run)
        self.seen[run.model] = run
        if run.state is RunState.PUBLISHING:
            self.finalising.finalise(run)

    def _notice_loss(self, model: str, active: str | None) -> None:
        """Say that a run failed which was going on when Redis lost its data: this process is all that remembers it."""
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
        spark = run.engine is Engine.SPARK
        # a Spark driver hands out all chunks itself: what is due then is a driver, unless one lives
        most = run.chunks_total or 0 if spark else self.settings.models[run.model].batch.max_in_flight
        due = self.ledger.dispatch(run.run_id, max_in_flight=most)
        if due.exhausted is not None:
            said = run.last_error or "nothing, since its worker died"
            error = f"chunk {due.exhausted} failed at every attempt; the last said: {said}"
            log.warning("run.failed", run_id=run.run_id, error=error)
            self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error)
        elif due.chunks and spark:
            self.start_spark(run.run_id)
        elif due.chunks:
            self.send_chunks(run.run_id, due.chunks)
        return self.ledger.load(run.run_id)

    def _give_up_old(self, model: str) -> None:
        """Give up what no run can use any more; its rows are removed soon after."""
        for kind, manifest in self.tables.unpublished(model):
            if manifest.run_id:
                self._give_up(kind, manifest, model, manifest.run_id)

    def _give_up(self, kind: TableKind, manifest: Manifest, model: str, run_id: str) -> None:
        active = self.ledger.active_run(model)
        try:
            run: RunRecord | None = self.ledger.load(run_id)
        except NotFound:
            run = None
        if run and active == run_id and (not run.fingerprint or run.generation_of(kind) == manifest.number):
            return
        is_its = run is not None and run.generation_of(kind) == manifest.number
        if run and active is None and is_its and self._can_be_resumed(run):
            return
        cancelled = run is not None and run.state is RunState.CANCELLED
        self.tables.table(kind, model).generations.discard(
            manifest.number, GenerationState.CANCELLED if cancelled else GenerationState.FAILED
        )
        if run:
            sweep(self.settings, run)
        log.info("generation.given_up", model=model, generation=manifest.number, run_id=run_id)

    def _can_be_resumed(self, run: RunRecord) -> bool:
        if run.finished_at is None or run.spent:
            return False
        return self.ledger.now() - run.finished_at < self.settings.models[run.model].batch.resumable
