"""The ledger of runs: which exist, which chunks are planned, claimed, done. Every change is one Lua script.

Leases are measured by Redis' clock inside the scripts, so hosts' clocks do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.batch.drift import Histogram
from inference.batch.plans import Plans
from inference.batch.records import RunRecord, RunState, is_run_id
from inference.errors import Conflict, NotFound, StoreFull, UnknownFormat, quoted
from inference.failures import Failures
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.redis.locks import ExpiringLock
from inference.stored_data import DATA_FORMAT, reading

log = get_logger(__name__)

#: a worker that is silent for this long has lost its chunk
LEASE_S = 10.0
#: a queue that delivers nothing for this long is suspected of having lost messages (doubled each time)
QUIET_S = 6.0
#: a chunk is given to workers this often, then its run fails
MAX_ATTEMPTS = 5
#: what is remembered of runs that are over
KEEP_RUNS, KEEP_SLOTS, KEEP_RECORD_S = 200, 200, 30 * 86400


@dataclass(frozen=True)
class Claim:
    """A worker's hold on one chunk. `attempt` counts from 1; `token` tells this hold from all others."""

    run_id: str
    chunk: int
    token: str
    attempt: int


@dataclass(frozen=True)
class Dispatch:
    """What to send now. `exhausted` is a chunk that used up its attempts; None for none."""

    chunks: tuple[int, ...]
    exhausted: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run is, as seen by the worker that just finished a chunk."""

    done: int
    total: int
    in_flight: int
    next_chunk: int


@dataclass(frozen=True)
class ChunkStates:
    """Chunks by what becomes of them; those in none of the sets were not sent yet."""

    done: frozenset[int]
    #: a worker holds them
    scoring: frozenset[int] = frozenset()
    #: sent, or sent again, and not taken up
    waiting: frozenset[int] = frozenset()


class Ledger:
    """Runs and their chunks in Redis. Methods raise StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys
        self.plans = Plans(client, keys, keep_s=KEEP_RECORD_S)
        self._failures = Failures(__name__, "run.read")

    def now(self) -> float:
        """Return epoch seconds of Redis' clock."""
        seconds, micros = self._client.time()
        return float(seconds + micros / 1e6)

    def lock(self, model: str) -> ExpiringLock:
        """Return the lock, not yet taken, that keeps two processes from moving a model's runs on at once."""
        return ExpiringLock(self._client, self._keys.reconciler(model), lease_s=LEASE_S)

    def driver_lock(self, run_id: str) -> ExpiringLock:
        """Return the lock, not yet taken, of the one Spark driver that hands out a run's chunks."""
        return ExpiringLock(self._client, self._keys.run_part(run_id, "driver"), lease_s=LEASE_S)

    def has_driver(self, run_id: str) -> bool:
        """Return whether a Spark driver lives that hands out the run's chunks."""
        return bool(self._client.exists(self._keys.run_part(run_id, "driver")))

    def is_open(self, run_id: str, chunk: int) -> bool:
        """Return whether a chunk is still to be scored: its run is running, and nobody has finished it."""
        state = self._client.hget(self._keys.run(run_id), "state")
        done = self._client.hexists(self._keys.run_part(run_id, "done"), str(chunk))
        return bool(state == RunState.RUNNING.value.encode() and not done)

    def request(self, run_id: str, model: str, fields: Mapping[str, str], *, slot: str | None = None) -> None:
        """Open a run in state queued, as its model's only one.

        Raises:
            Conflict: the model has a run in progress, or `slot` (a schedule's instant) was served already.
        """
        keys = [
            self._keys.active_run(model),
            self._keys.slots(model),
            self._keys.runs(model),
            self._keys.run(run_id),
        ]
        pairs = _pairs({"model": model, "format": DATA_FORMAT, **fields})
        verdict, other = self._run("request", keys, [run_id, slot or "", KEEP_RUNS, KEEP_SLOTS, *pairs])
        if verdict == b"active":
            raise Conflict(
                f"model {model!r} has run {other.decode()} in progress: wait for it or cancel it",
                field="model",
            )
        if verdict == b"slot":
            raise Conflict(f"the schedule's slot {slot} was served by run {other.decode()}", field="slot")

    def load(self, run_id: str) -> RunRecord:
        """Return the run.

        Raises:
            NotFound: there is none of that id, or it was forgotten.
        """
        data = {}
        if is_run_id(run_id):
            data = self._client.hgetall(self._keys.run(run_id))
        if not data:
            raise NotFound(
                f"no run {quoted(run_id)}: `forecache batch list` names those that are known", field="run_id"
            )
        record = RunRecord.from_hash(data)
        if record.run_id != run_id:
            raise UnknownFormat(f"the record of run {run_id} is that of another run")
        return record

    def active_run(self, model: str) -> str | None:
        """Return the id of the model's run in progress, or None."""
        run_id = self._client.get(self._keys.active_run(model))
        with reading(f"the active run of model {model!r}"):
            return str(run_id.decode()) if run_id else None

    def record_loss(self, run: RunRecord, error: str) -> None:
        """Write down that a run failed whose record Redis has lost, and free its model."""
        known: dict[str, str | int] = {**run.to_hash(), "state": RunState.FAILED.value, "error": error, "spent": "1"}
        keys = [self._keys.run(run.run_id), self._keys.active_run(run.model), self._keys.runs(run.model)]
        self._run("lost", keys, [run.run_id, KEEP_RECORD_S, run.created_at, *_pairs(known)])

    def forget_active(self, model: str, run_id: str) -> None:
        """Free a model whose run in progress has lost its record, of which nobody knows more."""
        if self._client.get(self._keys.active_run(model)) == run_id.encode():
            self._client.delete(self._keys.active_run(model))

    def newest(self, model: str, limit: int) -> list[RunRecord]:
        """Return the model's runs, the newest first; without those that are forgotten, or of a form not known here."""
        named = self._client.zrange(self._keys.runs(model), 0, limit - 1, desc=True)
        run_ids = [run_id for one in named if is_run_id(run_id := one.decode(errors="replace"))]
        with self._client.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(self._keys.run(run_id))
            found = [data for data in pipe.execute() if data]
        return list(self._readable(model, found))

    def _readable(self, model: str, found: Iterable[Mapping[bytes, bytes]]) -> Iterator[RunRecord]:
        for data in found:
            try:
                yield RunRecord.from_hash(data)
            except UnknownFormat as error:  # one record must not hide the others
                self._failures.tell(error, model, model=model)

    def move(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str | int) -> None:
        """Move a run to another state and set fields of its record, all at once; an end frees its model.

        Raises:
            Conflict: the run is in none of the expected states any more.
        """
        head = [run.run_id, to.value, _spaced(expected), "1" if to.is_over else "0", KEEP_RECORD_S]
        moved, state = self._run("move", self._run_keys(run), [*head, *_pairs(fields)])
        if not moved:
            raise Conflict(
                f"run {run.run_id} is {state.decode() or 'gone'}, not {' or '.join(expected)}", field="run_id"
            )

    def fail_for_memory(self, run_id: str, error: StoreFull) -> None:
        """Fail a run for which Redis has no memory; what it stored is given up, so that others may store again."""
        run = self.load(run_id)
        going = [RunState.QUEUED, RunState.RUNNING, RunState.PUBLISHING]
        if run.state in going:
            log.warning("run.failed", run_id=run_id, error=error.message)
            self.move(run, RunState.FAILED, expected=going, error=error.message, spent="1")

    def reopen(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str | int) -> None:
        """Take a run that is over up again; its finished chunks stay finished.

        Raises:
            Conflict: the run is in none of the expected states, or its model has another run in progress.
        """
        head = [run.run_id, to.value, _spaced(expected)]
        verdict, detail = self._run("reopen", self._run_keys(run), [*head, *_pairs(fields)])
        if verdict == b"active":
            raise Conflict(f"model {run.model!r} has run {detail.decode()} in progress: wait for it or cancel it")
        if verdict == b"state":
            raise Conflict(
                f"run {run.run_id} is {detail.decode() or 'gone'}, not {' or '.join(expected)}",
                field="run_id",
            )

    def note(self, run: RunRecord, **fields: str | int) -> None:
        """Set fields of the run's record, whatever its state, if it still exists."""
        self._run("note", [self._keys.run(run.run_id)], _pairs(fields))

    def dispatch(self, run_id: str, *, max_in_flight: int, quiet_s: float = QUIET_S) -> Dispatch:
        """Choose the chunks to send now, and note them as sent: lost ones again, then new ones."""
        keys = [self._keys.run(run_id), *self._parts(run_id, "claims", "done", "sent", "plan")]
        limits = [max_in_flight, int(quiet_s * 1000), MAX_ATTEMPTS, KEEP_RECORD_S]
        send, exhausted = self._run("dispatch", keys, limits)
        return Dispatch(tuple(int(chunk) for chunk in send), int(exhausted) if exhausted else None)

    def claim(self, run_id: str, chunk: int, token: str, *, lease_s: float = LEASE_S) -> Claim | str:
        """Take a chunk for the length of a lease; a text says why it was refused."""
        keys = [self._keys.run(run_id), *self._parts(run_id, "claims", "done")]
        attempt, refusal = self._run("claim", keys, [chunk, token, int(lease_s * 1000), MAX_ATTEMPTS])
        return Claim(run_id, chunk, token, attempt) if attempt else refusal.decode()

    def renew(self, claim: Claim, *, lease_s: float = LEASE_S) -> bool:
        """Extend the lease; False when it is lost: the run is over, or another worker has the chunk."""
        return self._renew(claim, int(lease_s * 1000), "")

    def give_back(self, claim: Claim, *, error: str, pause_s: float) -> None:
        """End a failed attempt: the chunk goes out again after the pause; `error` is kept in the run."""
        self._renew(claim, -max(int(pause_s * 1000), 1), error)

    def finish(
        self,
        claim: Claim,
        result: Mapping[str, Any],
        *,
        rows: int,
        quarantined: int,
        histogram: Mapping[str, Histogram] | None = None,
    ) -> Progress | None:
        """Record a chunk's result, once; None when the claim is lost or the chunk was finished by another.

        `histogram`: output → counts of its predictions, added to the run's.
        """
        keys = [self._keys.run(claim.run_id), *self._parts(claim.run_id, "claims", "done", "sent", "histogram")]
        counts = [
            part
            for output, bins in (histogram or {}).items()
            for at, count in bins.items()
            for part in (f"{output}:{at}", count)
        ]
        answer = self._run("finish", keys, [claim.chunk, claim.token, json.dumps(result), rows, quarantined, *counts])
        return Progress(*answer[1:]) if answer[0] else None

    def results(self, run_id: str) -> dict[int, dict[str, Any]]:
        """Return every finished chunk's result by number."""
        done = self._client.hgetall(self._keys.run_part(run_id, "done"))
        with reading(f"the results of run {run_id}"):
            return {int(number): json.loads(text) for number, text in done.items()}

    def histogram(self, run_id: str) -> dict[str, dict[int, int]]:
        """Return output → counts of the finished chunks' predictions; empty when they are not known any more."""
        counts = self._client.hgetall(self._keys.run_part(run_id, "histogram"))
        found: dict[str, dict[int, int]] = {}
        with reading(f"the histogram of run {run_id}"):
            for name, count in counts.items():
                output, _, at = name.decode().rpartition(":")
                found.setdefault(output, {})[int(at)] = int(count)
        return found

    def chunk_states(self, run_id: str) -> ChunkStates:
        """Return which chunks are done, which are held by a worker, and which wait for one."""
        # no transaction: Redis refuses even a reading one when it is out of memory
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hkeys(self._keys.run_part(run_id, "done"))
            pipe.hgetall(self._keys.run_part(run_id, "claims"))
            pipe.zrange(self._keys.run_part(run_id, "sent"), 0, -1)
            (seconds, micros), done, claims, sent = pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        with reading(f"the chunks of run {run_id}"):
            held = {int(chunk) for chunk, claim in claims.items() if _is_held(claim, now_ms)}
            return ChunkStates(
                done=frozenset(map(int, done)),
                scoring=frozenset(held),
                waiting=frozenset(set(map(int, sent)) - held),
            )

    def _renew(self, claim: Claim, lease_ms: int, error: str) -> bool:
        keys = [self._keys.run(claim.run_id), *self._parts(claim.run_id, "claims")]
        return bool(self._run("renew", keys, [claim.chunk, claim.token, lease_ms, error]))

    def _run_keys(self, run: RunRecord) -> list[str]:
        return [
            self._keys.run(run.run_id),
            self._keys.active_run(run.model),
            # not the plan, which only workers may write: it has its own end from the start
            *self._parts(run.run_id, "claims", "done", "sent", "histogram"),
        ]

    def _parts(self, run_id: str, *parts: str) -> list[str]:
        return [self._keys.run_part(run_id, part) for part in parts]

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._client.run_script(name, keys, args)


def _is_held(claim: bytes, now_ms: int) -> bool:
    """Whether a worker holds a chunk; one that was given back rests under no token."""
    _, token, until_ms = claim.split()
    return token != b"-" and int(until_ms) > now_ms


def _pairs(fields: Mapping[str, str | int]) -> list[str | int]:
    return [part for pair in fields.items() for part in pair]


def _spaced(states: Sequence[RunState]) -> str:
    return f" {' '.join(states)} "
