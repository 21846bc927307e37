"""Jobs: predictions that a client enqueues and fetches later. This module holds the request and the worker's side.

A job has its own record in Redis, since Celery cannot tell an unknown task from one that waits. It is split
into parts, one message each. `job_queue` creates and shows jobs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

import numpy as np

from inference.errors import (
    BadInput,
    Defect,
    EntityForgotten,
    ForecacheError,
    Overloaded,
    PredictionFailed,
    StoreUnavailable,
)
from inference.logs import get_logger
from inference.monitoring.queues import JobPriority
from inference.protocols.json_documents import encode
from inference.protocols.tensors import MAX_ANSWER_BYTES
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.store import ForgottenList, stored_id
from inference.stored_data import reading, record_from_json

log = get_logger(__name__)

#: most bytes of one job's results: they fill up to three quarters of one HTTP answer
MAX_RESULT_BYTES = MAX_ANSWER_BYTES // 4 * 3
#: how long an untouched job is remembered, in seconds
JOB_KEEP_S = 3600
#: seconds for which a job is listed after its last change: longer than it is remembered
LISTED_S = 2 * JOB_KEEP_S
#: most bytes of all jobs that began within an hour
MAX_JOB_BYTES = 1 << 30
#: bytes that are reserved for a row's result
ROW_BYTES = 100
#: ids or instances of one message
PART_ROWS = 256
#: a part that was begun this often and never ended counts as the killer of its workers
MAX_BEGUN = 3
#: seconds for which a worker begins a part again while Redis is away, and between two tries: a failover takes a few
OUTAGE_S, OUTAGE_PAUSE_S = 15.0, 1.0


class JobState(StrEnum):
    """The states of a job."""

    #: no worker has begun
    QUEUED = "queued"
    #: a worker has begun one of its parts
    RUNNING = "running"
    #: every part is computed
    DONE = "done"
    #: a part failed as a whole; the rest is not computed
    FAILED = "failed"
    #: a client cancelled it; the rest is not computed
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobRequest:
    """The request for a job: entity ids (with or without features to override), or instances.

    `timeout_s`: parts that no worker has begun by then fail with `deadline-exceeded`; None for no limit.
    """

    model: str
    entity_ids: Sequence[str] | None = None
    instances: Sequence[Any] | None = None
    overrides: Mapping[str, Any] | None = None
    timeout_s: float | None = None
    priority: JobPriority = JobPriority.NORMAL

    @property
    def rows(self) -> Sequence[Any]:
        """The ids or the instances."""
        return self.entity_ids if self.entity_ids is not None else (self.instances or ())

    def packed(self) -> PackedJob:
        """Return the request in its stored form. Slow for many rows: never call it on an event loop."""
        rows = self.rows
        parts = [encode(list(rows[start : start + PART_ROWS]), _spell) for start in range(0, len(rows), PART_ROWS)]
        overrides = encode(dict(self.overrides), _spell) if self.overrides else b""
        terms = [self.model, self.entity_ids is None, self.timeout_s, self.priority.value]
        digest = hashlib.sha256(json.dumps(terms).encode())
        for part in (overrides, *parts):
            digest.update(b"%d:%b" % (len(part), part))
        return PackedJob(parts, overrides, digest.hexdigest())


@dataclass(frozen=True)
class PackedJob:
    """A request in its stored form. Equal requests have the same `digest`."""

    parts: list[bytes]
    overrides: bytes
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the stored request. Results are counted when they are there."""
        return sum(map(len, self.parts)) + len(self.overrides)


def _spell(value: Any) -> bytes:
    # not by orjson, which turns NaN and infinities into null
    return json.dumps(value).encode()


class JobScorer(Protocol):
    """The worker's scorer, as far as jobs need it (`inference.serving.scorer.RealtimeScorer`)."""

    def predict_entities(
        self,
        model: str,
        entity_ids: list[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """Compute entities."""

    def predict_instances(self, model: str, instances: list[Any], *, deadline: float | None = None) -> dict[str, Any]:
        """Compute rows of features."""


_NO_ROOM: dict[Any, ForecacheError] = {
    -1: Overloaded("the results of the last hour's jobs take up all the room for jobs: enqueue fewer rows"),
    -2: BadInput(f"the results of this job exceed {MAX_RESULT_BYTES} bytes: enqueue fewer rows at a time"),
}


def job_keys(keys: Keys, job_id: str) -> list[str]:
    """Return the job's keys in the order that the scripts expect."""
    return [keys.job(job_id), keys.job_inputs(job_id), keys.job_parts(job_id)]


def error_to_json(error: ForecacheError) -> str:
    """Return the error as jobs store it."""
    return json.dumps(error.to_json())


def run_part(client: Client, keys: Keys, scorer: JobScorer, job_id: str, part: int) -> None:
    """Compute one part of a job and store its predictions. Safe to run twice.

    The job fails if the part is begun too often, or fails as a whole; a single bad row is only that row's error.
    Drops a part of a job that is gone, cancelled or failed. Begins again while Redis is away for a moment.

    Raises:
        StoreUnavailable: Redis stayed away. The job goes on once somebody asks for it.
    """
    ends_at = time.monotonic() + OUTAGE_S
    while True:
        try:
            _run_part(client, keys, scorer, job_id, part)
        except StoreUnavailable as error:
            if not _is_outage(error) or time.monotonic() >= ends_at:
                raise
            time.sleep(OUTAGE_PAUSE_S)
        else:
            return


def _is_outage(error: ForecacheError) -> bool:
    """Tell whether Redis is away: where it is full, or its data is damaged, it answers."""
    return type(error) is StoreUnavailable


def _run_part(client: Client, keys: Keys, scorer: JobScorer, job_id: str, part: int) -> None:
    touched = job_keys(keys, job_id)
    state, begun = client.run_script("begin_part", touched[:1], [part])
    rows = client.hget(touched[1], str(part))
    if state != JobState.RUNNING.value.encode() or rows is None:
        return
    if begun > MAX_BEGUN:
        killer = PredictionFailed(f"part {part} was begun {MAX_BEGUN} times and killed its worker each time")
        log.error("job.ends_its_workers", error=killer.message)
        _fail(client, touched, killer)
        return
    try:
        record = cast(dict[bytes, bytes], client.hgetall(touched[0]))
        asked = record_from_json(list[Any], cast(bytes, rows), "the rows of a job")
        scored = _score(scorer, record, asked)
        _name_no_forgotten(scored["predictions"])
        result = json.dumps(scored)
    except ForecacheError as error:
        if _is_outage(error):
            raise
        _fail(client, touched, error)
    except Exception:
        failed = Defect("a worker failed on this job, not the model; the worker's log says why")
        _fail(client, touched, failed)
        raise
    else:
        reserved = ROW_BYTES * len(scored["predictions"])
        limits = [JOB_KEEP_S, reserved, MAX_JOB_BYTES, MAX_RESULT_BYTES]
        done = client.run_script("finish_part", [*touched, keys.job_bytes], [part, result, *limits])
        if done in _NO_ROOM:
            _fail(client, touched, _NO_ROOM[done])
        JobIds(client, keys, record[b"model"].decode()).look_again(job_id, asked)


class JobIds:
    """The ids that the jobs of a model hold, for as long as the jobs are kept."""

    def __init__(self, client: Client, keys: Keys, model: str) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys
        self._model = model
        self._forgotten = ForgottenList(client, keys.forgotten(model), model=model)

    def look_again(self, job_id: str, asked: Sequence[Any]) -> None:
        """Note that a job has changed; if one of its ids was forgotten while a part was computed, remove it."""
        self._client.zadd(self._keys.jobs_of(self._model), {job_id: self._client.now()})
        ids = [one for one in asked if isinstance(one, str)]
        found = self._forgotten.find([stored_id(one) for one in ids])
        for at in np.flatnonzero(found).tolist():
            self.remove_from(job_id, ids[at])

    def remove(self, entity_id: str) -> int:
        """Remove an id and its predictions from all jobs; return the number of rows. May run twice."""
        jobs = self._client.zrange(self._keys.jobs_of(self._model), 0, -1)
        return sum(self.remove_from(job_id.decode(), entity_id) for job_id in jobs)

    def remove_from(self, job_id: str, entity_id: str) -> int:
        """Remove an id and its predictions from one job: the row has an error instead."""
        record, inputs, parts = job_keys(self._keys, job_id)
        if self._client.hget(record, "kind") != b"entities":
            return 0
        waiting = self._change(inputs, lambda rows: _without_id(rows, entity_id))
        return waiting + self._change(parts, lambda result: self._without_answers(result, entity_id))

    def _without_answers(self, result: Any, entity_id: str) -> int:
        items = [item for item in result["predictions"] if item.get("entity_id") == entity_id]
        for item in items:
            item.clear()
            item.update({"entity_id": None, "error": self._forgotten.error().to_json()})
        return len(items)

    def _change(self, key: str, change: Callable[[Any], int]) -> int:
        """Change the JSON values of a hash; `change` returns how many rows it has changed."""
        total = 0
        for name, text in self._client.hgetall(key).items():
            with reading("a part of a job"):
                document = json.loads(text)
                changed = change(document)
            if changed and self._client.run_script("swap_field", [key], [name, text, json.dumps(document)]):
                total += changed
        return total


def _without_id(rows: list[Any], entity_id: str) -> int:
    places = [at for at, row in enumerate(rows) if row == entity_id]
    for at in places:
        rows[at] = None
    return len(places)


def _name_no_forgotten(items: Sequence[dict[str, Any]]) -> None:
    """Remove the ids of forgotten entities from a result: results are kept."""
    for item in items:
        if item.get("error", {}).get("code") == EntityForgotten.code:
            item["entity_id"] = None


def _fail(client: Client, touched: Sequence[str], error: ForecacheError) -> None:
    client.run_script("end_job", touched, [JobState.FAILED.value, error_to_json(error), ""])


def _score(scorer: JobScorer, record: Mapping[bytes, bytes], rows: list[Any]) -> dict[str, Any]:
    with reading("the record of a job"):
        model = record[b"model"].decode()
        deadline = float(record[b"deadline"]) if record[b"deadline"] else None
        overrides = json.loads(record[b"overrides"]) if record[b"overrides"] else None
        is_of_instances = record[b"kind"] == b"instances"
    if is_of_instances:
        return scorer.predict_instances(model, rows, deadline=deadline)
    scored = scorer.predict_entities(model, rows, overrides=overrides, deadline=deadline)
    for row, item in zip(rows, scored["predictions"], strict=True):
        if row is None:  # forgotten while the job waited
            item["error"] = EntityForgotten("this entity was forgotten on request", field="entity_id").to_json()
    return scored
