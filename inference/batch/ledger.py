"""Keeps runs in Redis: their records, their plans, and who claimed or finished which chunk.

Every change of a run's state is one Lua script. The scripts measure leases by Redis' clock, so hosts' clocks do not
matter.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson

from inference import tracing
from inference.batch.chunk_states import ChunkStates
from inference.batch.gates import Histogram
from inference.batch.records import Chunk, RunRecord, RunState, is_run_id
from inference.errors import Conflict, NotFound, StoreFull, Unavailable, UnknownFormat, Unreadable, quoted
from inference.failures import Failures
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.redis.locks import LEASE_S, ExpiringLock
from inference.sources import SourceFile
from inference.stored_data import DATA_FORMAT, reading

log = get_logger(__name__)

#: a queue that delivers nothing for this long may have lost messages; they are sent again, each time after double that
QUIET_S = 6.0
#: workers try a chunk this often, then its run fails
MAX_ATTEMPTS = 5
#: runs and slots that a model remembers, and for how long the record of a run that is over stays
KEEP_RUNS, KEEP_SLOTS, KEEP_RECORD_S = 200, 200, 30 * 86400
#: for how long the ids of a partial run wait for its plan
_KEEP_ENTITIES_S = 86400
#: the limit for a chunk's histogram; one of 20 000 bins takes 300 KB
_MOST_BINS_BYTES = 64 << 20
#: HSET takes this many chunks or files of a plan at once
_PIECE = 5_000


@dataclass(frozen=True)
class Claim:
    """A worker's hold on one chunk. `attempt` counts from 1; `token` is different for each hold."""

    run_id: str
    chunk: int
    token: str
    attempt: int


@dataclass(frozen=True)
class Dispatch:
    """The chunks to send now. `exhausted`: a chunk that used up its attempts; None for none."""

    chunks: tuple[int, ...]
    exhausted: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run is, at the moment when a worker finished a chunk."""

    done: int
    total: int
    in_flight: int
    next_chunk: int


class Plans:
    """Plans of runs: chunks and files; before the plan, the ids of a partial run.

    Methods raise StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys

    def write(self, run_id: str, chunks: Iterable[Chunk], *, files: Iterable[SourceFile] = ()) -> int:
        """Replace a run's plan; return the number of its chunks."""
        key = self._keys.run_part(run_id, "plan")
        self._client.delete(key)
        self._write_pieces(key, ((_file_field(number), file.to_json()) for number, file in enumerate(files)))
        return self._write_pieces(key, ((str(chunk.number), chunk.to_json()) for chunk in chunks))

    def chunk(self, run_id: str, number: int) -> Chunk | None:
        """Return a planned chunk with its files, or None.

        Raises:
            Unreadable: Redis holds no plan there.
        """
        key = self._keys.run_part(run_id, "plan")
        text = self._client.hget(key, str(number))
        if text is None:
            return None
        chunk = Chunk.from_json(number, text)
        wanted = list(dict.fromkeys(part.file for part in chunk.slices))
        files = self._client.hmget(key, [_file_field(file) for file in wanted])
        known = zip(wanted, files, strict=True)
        return replace(chunk, files={file: SourceFile.from_json(data) for file, data in known if data})

    def files(self, run_id: str) -> Iterator[SourceFile]:
        """Yield the planned files in their order, without their row groups."""
        key, at = self._keys.run_part(run_id, "plan"), 0
        while True:
            found = self._client.hmget(key, [_file_field(at + offset) for offset in range(_PIECE)])
            yield from (SourceFile.from_json(data) for data in found if data)
            at += _PIECE
            if found[-1] is None:
                return

    def keep_entities(self, run_id: str, packed: bytes) -> None:
        """Keep the packed ids of a partial run until it is planned."""
        self._client.set(self._keys.run_part(run_id, "entities"), packed, ex=_KEEP_ENTITIES_S)

    def entities(self, run_id: str) -> bytes | None:
        """Return the packed ids of a partial run, or None when they waited for too long."""
        packed: bytes | None = self._client.get(self._keys.run_part(run_id, "entities"))
        return packed

    def forget_entities(self, run_id: str) -> None:
        """Remove the packed ids of a partial run."""
        self._client.delete(self._keys.run_part(run_id, "entities"))

    def _write_pieces(self, key: str, fields: Iterator[tuple[str, Any]]) -> int:
        written = 0
        while piece := {name: orjson.dumps(value) for name, value in islice(fields, _PIECE)}:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(key, mapping=piece)
                # the run may be cancelled meanwhile: nobody else limits the plan's life then
                pipe.expire(key, KEEP_RECORD_S)
                pipe.execute()
            written += len(piece)
        return written


class Ledger:
    """Runs and their chunks in Redis. Methods raise StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys
        self.plans = Plans(client, keys)
        self._failures = Failures(__name__, "run.read")

    def now(self) -> float:
        """Return epoch seconds of Redis' clock."""
        return float(self._client.now())

    def lock(self, model: str) -> ExpiringLock:
        """Return the lock, not yet taken, of the one reconciler that moves a model's runs on."""
        return ExpiringLock(self._client, self._keys.reconciler(model))

    def driver_lock(self, run_id: str) -> ExpiringLock:
        """Return the lock, not yet taken, of the one driver that hands out a run's chunks."""
        return ExpiringLock(self._client, self._keys.run_part(run_id, "driver"))

    def has_driver(self, run_id: str) -> bool:
        """Return whether a living driver hands out the run's chunks."""
        return bool(self._client.exists(self._keys.run_part(run_id, "driver")))

    def is_open(self, run_id: str, chunk: int) -> bool:
        """Return whether a chunk still waits for its score: its run is running, and nobody has finished it."""
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

    def held_run(self, model: str) -> str | None:
        """Return the id of the run that waits for its publication, or None."""
        run_id = self._client.get(self._keys.held_run(model))
        with reading(f"the held run of model {model!r}"):
            return str(run_id.decode()) if run_id else None

    def end_held(self, model: str, error: Callable[[RunRecord], str | None]) -> None:
        """Cancel the run that waits for its publication, and give up its rows, if `error` returns why."""
        run_id = self.held_run(model)
        if run_id is None:
            return
        try:
            run = self.load(run_id)
        except NotFound:  # forgotten with its model's settings, or lost
            self._client.delete(self._keys.held_run(model))
            return
        if text := error(run):
            self.move(run, RunState.CANCELLED, expected=[RunState.HELD], error=text, spent="1")
            log.warning("run.held_too_long", run_id=run_id, reason=text)

    def keep_diff(self, run_id: str, text: str) -> None:
        """Keep a run's last comparison with what serves."""
        self._client.set(self._keys.run_part(run_id, "diff"), text, ex=KEEP_RECORD_S)

    def diff(self, run_id: str) -> bytes | None:
        """Return the last comparison of a run as `keep_diff` got it, or None."""
        text: bytes | None = self._client.get(self._keys.run_part(run_id, "diff"))
        return text

    def record_loss(self, run: RunRecord, error: str) -> None:
        """Write a failed run's record anew after Redis lost it, and free its model."""
        keys = [self._keys.run(run.run_id), self._keys.active_run(run.model), self._keys.runs(run.model)]
        self._run("lost", keys, [run.run_id, KEEP_RECORD_S, run.created_at, *_pairs(run.hash_after_loss(error))])

    def forget_active(self, model: str, run_id: str) -> None:
        """Free a model whose run in progress has no record any more."""
        if self._client.get(self._keys.active_run(model)) == run_id.encode():
            self._client.delete(self._keys.active_run(model))

    def newest(self, model: str, limit: int) -> list[RunRecord]:
        """Return the model's runs, the newest first. Forgotten and unreadable ones are left out."""
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
        """Move a run to another state and set fields of its record, in one step; an end frees its model.

        Raises:
            Conflict: the run left the expected states.
        """
        head = [run.run_id, to.value, _spaced(expected), "1" if to.is_over else "0", KEEP_RECORD_S]
        moved, state = self._run("move", self._run_keys(run), [*head, *_pairs(fields)])
        if not moved:
            raise Conflict(
                f"run {run.run_id} is {state.decode() or 'gone'}, not {' or '.join(expected)}", field="run_id"
            )
        if to.is_over:
            failed = to is RunState.FAILED
            tracing.end_run(run.run_id, run.model, to.value, began_at=run.created_at, failed=failed)

    def fail_for_memory(self, run_id: str, error: StoreFull) -> None:
        """Fail a run for which Redis has no memory, and give up its rows, so that others may store again."""
        run = self.load(run_id)
        going = [RunState.QUEUED, RunState.RUNNING, RunState.PUBLISHING]
        if run.state in going:
            log.warning("run.failed", run_id=run_id, error=error.message)
            self.move(run, RunState.FAILED, expected=going, error=error.message, spent="1")

    def reopen(self, run: RunRecord, to: RunState, *, expected: Sequence[RunState], **fields: str | int) -> None:
        """Reopen a run that is over; its finished chunks stay finished.

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
        """Set fields of the run's record in any state, if the record still exists."""
        self._run("note", [self._keys.run(run.run_id)], _pairs(fields))

    def dispatch(self, run_id: str, *, max_in_flight: int, quiet_s: float = QUIET_S) -> Dispatch:
        """Choose the chunks to send now, and note them as sent: first lost ones, then new ones."""
        keys = [self._keys.run(run_id), *self._parts(run_id, "claims", "done", "sent", "plan")]
        limits = [max_in_flight, int(quiet_s * 1000), MAX_ATTEMPTS, KEEP_RECORD_S]
        send, exhausted = self._run("dispatch", keys, limits)
        return Dispatch(tuple(int(chunk) for chunk in send), int(exhausted) if exhausted else None)

    def claim(self, run_id: str, chunk: int, token: str, *, lease_s: float = LEASE_S) -> Claim | str:
        """Claim a chunk for the length of a lease. A text says why the claim is refused."""
        keys = [self._keys.run(run_id), *self._parts(run_id, "claims", "done")]
        attempt, refusal = self._run("claim", keys, [chunk, token, int(lease_s * 1000), MAX_ATTEMPTS])
        return Claim(run_id, chunk, token, attempt) if attempt else refusal.decode()

    def renew(self, claim: Claim, *, lease_s: float = LEASE_S) -> bool:
        """Extend the lease; False when it is lost: the run is over, or another worker has the chunk."""
        return self._renew(claim, int(lease_s * 1000), "")

    def give_back(self, claim: Claim, *, error: str, pause_s: float) -> None:
        """End a failed attempt: the chunk is sent again after the pause, and the run keeps `error`."""
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
        """Record a chunk's result, once; None when the claim is lost or another worker finished the chunk.

        `histogram`: output → counts of its predictions.
        """
        keys = [self._keys.run(claim.run_id), *self._parts(claim.run_id, "claims", "done", "sent", "bins")]
        bins = _packed(histogram) if histogram else b""
        answer = self._run("finish", keys, [claim.chunk, claim.token, json.dumps(result), rows, quarantined, bins])
        return Progress(*answer[1:]) if answer[0] else None

    def keep_histogram(self, run_id: str, histogram: Mapping[str, Histogram]) -> None:
        """Keep the counts of the predictions that a run carries over without reading their rows. May run twice."""
        if histogram:
            key = self._keys.run_part(run_id, "bins")
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(key, "unread", _packed(histogram))
                pipe.expire(key, KEEP_RECORD_S)
                pipe.execute()

    def results(self, run_id: str) -> dict[int, dict[str, Any]]:
        """Return every finished chunk's result by number."""
        done = self._client.hgetall(self._keys.run_part(run_id, "done"))
        with reading(f"the results of run {run_id}"):
            return {int(number): json.loads(text) for number, text in done.items()}

    def histogram(self, run_id: str) -> dict[str, dict[int, int]]:
        """Return output → counts of the finished chunks' predictions; empty when Redis has forgotten them."""
        with self._client.pipeline(transaction=False) as pipe:
            for key in self._parts(run_id, "histogram", "bins"):
                pipe.hgetall(key)
            added_up, of_chunks = pipe.execute()
        found: dict[str, dict[int, int]] = {}
        with reading(f"the histogram of run {run_id}"):
            for name, count in added_up.items():
                output, _, at = name.decode().rpartition(":")
                found.setdefault(output, {})[int(at)] = int(count)
            for packed in of_chunks.values():
                bins_of = orjson.loads(zlib.decompressobj().decompress(packed, _MOST_BINS_BYTES))
                for output, bins in bins_of.items():
                    counts = found.setdefault(output, {})
                    for at, count in bins.items():
                        counts[int(at)] = counts.get(int(at), 0) + int(count)
        return found

    def add_up_histogram(self, run_id: str) -> None:
        """Keep one histogram in place of one for each chunk. May run twice."""
        whole, bins = self._parts(run_id, "histogram", "bins")
        found = self.histogram(run_id)
        counts = {f"{output}:{at}": count for output, of_output in found.items() for at, count in of_output.items()}
        if counts:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.delete(bins)
                pipe.hset(whole, mapping=counts)
                pipe.execute()

    def chunk_states(self, run_id: str) -> ChunkStates:
        """Return which chunks are done, which a worker holds, and which wait for a worker."""
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
            self._keys.held_run(run.model),
            # not the plan: only workers may write it, and it expires from the start
            *self._parts(run.run_id, "claims", "done", "sent", "bins", "histogram"),
        ]

    def _parts(self, run_id: str, *parts: str) -> list[str]:
        return [self._keys.run_part(run_id, part) for part in parts]

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._client.run_script(name, keys, args)


def _is_held(claim: bytes, now_ms: int) -> bool:
    """Whether a worker holds a chunk. A chunk that was given back rests under the token `-`."""
    _, token, until_ms = claim.split()
    return token != b"-" and int(until_ms) > now_ms


def _packed(histogram: Mapping[str, Histogram]) -> bytes:
    return zlib.compress(orjson.dumps(histogram, option=orjson.OPT_NON_STR_KEYS), 1)


def _pairs(fields: Mapping[str, str | int]) -> list[str | int]:
    return [part for pair in fields.items() for part in pair]


def _spaced(states: Sequence[RunState]) -> str:
    return f" {' '.join(states)} "


def _file_field(number: int) -> str:
    return f"f{number}"


def is_the_runs_fault(error: Exception) -> bool:
    """Return whether an error ends the run that was moved on, so that its model is free for the next.

    It does not when the run is over or gone by now, or when a server does not answer: the next round decides then.
    Unreadable data stay unreadable, so they end the run.
    """
    return isinstance(error, Unreadable) or not isinstance(error, Conflict | NotFound | Unavailable)
