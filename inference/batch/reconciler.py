"""Moves runs on: prepares, sends and re-sends chunks, finalises, collects. Idempotent, anywhere, any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from redis.exceptions import LockError

from inference.batch.finalising import Finalising
from inference.batch.leases import Lease
from inference.batch.ledger import LEASE_S, Ledger, redis_outage_is_an_error
from inference.batch.preparation import Preparation
from inference.batch.records import RunRecord, RunState
from inference.errors import Conflict, ForecacheError, NotFound
from inference.logs import get_logger
from inference.settings import Settings
from inference.store import GenerationState, Manifest, Table

log = get_logger(__name__)

#: how long a failed or cancelled run can be taken up again, if no other run of its model starts before
RESUMABLE_S = 24 * 3600.0


@dataclass(frozen=True)
class Reconciler:
    """Looks at each model's run in progress and does what is due."""

    settings: Settings
    ledger: Ledger
    predictions: Callable[[str], Table]
    preparation: Preparation
    finalising: Finalising
    send_chunks: Callable[[str, Sequence[int]], None]

    def reconcile(self) -> None:
        """Move every model's run on. A model that fails is logged, and does not stop the others.

        Raises:
            StoreUnavailable: Redis does not answer, whichever the model.
        """
        self.ledger.now()
        for model in self.settings.models:
            try:
                with self.holding(model) as held:
                    if held:
                        self._advance(model)
                self._collect(model)
            except Conflict as error:  # somebody else moved the run on first
                log.info("reconcile.overtaken", model=model, reason=error.message)
            except ForecacheError as error:
                log.warning("reconcile.failed", model=model, error=error.message)
            except Exception:  # a bug for one model must not stop the runs of the others
                log.exception("reconcile.failed", model=model)

    @contextmanager
    def holding(self, model: str, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the model's lock, kept alive while it takes; yields False when another process has it."""
        lock = self.ledger.lock(model)
        with redis_outage_is_an_error():
            taken = lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None)
        if not taken:
            yield False
            return
        try:
            with Lease(lambda: _extend(lock), name=f"reconciler of {model}"):
                yield True
        finally:
            _release(lock)

    def prepare(self, run_id: str) -> None:
        """Prepare a queued run now, unless the model is being looked after already (then that will do it)."""
        run = self.ledger.load(run_id)
        with self.holding(run.model) as held:
            if held:
                self._advance(run.model)

    def _advance(self, model: str) -> None:
        run_id = self.ledger.active_run(model)
        if run_id is None:
            return
        try:
            run = self.ledger.load(run_id)
        except NotFound:
            self.ledger.forget_active(model, run_id)
            return
        if run.state is RunState.QUEUED:
            self.preparation.prepare(run)
            run = self.ledger.load(run_id)
        if run.state is RunState.RUNNING:
            run = self._move_chunks(run)
        if run.state is RunState.PUBLISHING:
            self.finalising.finalise(run)

    def _move_chunks(self, run: RunRecord) -> RunRecord:
        if run.chunks_done == run.chunks_total:
            self.ledger.move(run, RunState.PUBLISHING, expected=[RunState.RUNNING])
            return self.ledger.load(run.run_id)
        due = self.ledger.dispatch(run.run_id, max_in_flight=self.settings.models[run.model].batch.max_in_flight)
        if due.exhausted is not None:
            said = run.last_error or "nothing, since its worker died"
            error = f"chunk {due.exhausted} failed at every attempt; the last said: {said}"
            log.warning("run.failed", run_id=run.run_id, error=error)
            self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error)
        elif due.chunks:
            self.send_chunks(run.run_id, due.chunks)
        return self.ledger.load(run.run_id)

    def _collect(self, model: str) -> None:
        """Give up what no run can use any more, then remove the rows of what was given up."""
        table = self.predictions(model)
        for manifest in table.generations():
            if table.state(manifest.number) is GenerationState.LOADING and manifest.run_id:
                self._give_up(model, table, manifest, manifest.run_id)
        for number in table.collectable():
            table.collect(number)

    def _give_up(self, model: str, table: Table, manifest: Manifest, run_id: str) -> None:
        with self.holding(model) as held:  # against a run that is taken up again at this moment
            if not held:
                return
            active = self.ledger.active_run(model)
            if active == run_id and self.ledger.load(run_id).generation in (None, manifest.number):
                return
            try:
                run: RunRecord | None = self.ledger.load(run_id)
            except NotFound:
                run = None
            if run and active is None and self._can_be_resumed(run, manifest):
                return
            cancelled = run is not None and run.state is RunState.CANCELLED
            table.discard(manifest.number, GenerationState.CANCELLED if cancelled else GenerationState.FAILED)
            log.info("generation.given_up", model=model, generation=manifest.number, run_id=run_id)

    def _can_be_resumed(self, run: RunRecord, manifest: Manifest) -> bool:
        if run.generation != manifest.number or run.finished_at is None:
            return False
        return self.ledger.now() - run.finished_at < RESUMABLE_S


def _extend(lock: redis.lock.Lock) -> bool:
    try:
        with redis_outage_is_an_error():
            return bool(lock.extend(LEASE_S, replace_ttl=True))
    except LockError:
        return False


def _release(lock: redis.lock.Lock) -> None:
    try:
        lock.release()
    except redis.RedisError as error:  # lost or unreachable: it expires by itself
        log.warning("reconciler.lock_not_released", error=str(error))
