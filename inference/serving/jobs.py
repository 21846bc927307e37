"""Jobs: predictions that someone enqueued and fetches later. Their record, its changes, and a worker's part.

A job has its own record in Redis, since Celery cannot tell an unknown task from one that waits. It is split
into parts, one message each; `job_queue` is the side that creates and shows jobs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

import redis

from inference.errors import Defect, ForecacheError, PredictionFailed
from inference.keys import Keys
from inference.queues import JobPriority

#: ids or instances of one message
PART_ROWS = 256
#: a part that was begun so often and never ended is taken to kill its worker
MAX_BEGUN = 3
#: how long an untouched job is remembered, in seconds
JOB_KEEP_S = 3600


class JobState(StrEnum):
    """The life of a job."""

    #: no worker has begun
    QUEUED = "queued"
    #: a worker has begun one of its parts
    RUNNING = "running"
    #: every part is there
    DONE = "done"
    #: a part failed as a whole; what is left is not computed
    FAILED = "failed"
    #: someone cancelled it; what is left is not computed
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobRequest:
    """What a job is asked to predict: entity ids (with features to override, or none), or instances.

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

    @property
    def digest(self) -> str:
        """A digest that two requests share when they ask for the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


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


# KEYS: job. ARGV: part number. Returns the state (nil when the job is gone) and how often the part was begun.
_BEGIN = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {false, 0} end
if state == 'queued' then
  state = 'running'
  redis.call('HSET', KEYS[1], 'state', state, 'changed_at', redis.call('TIME')[1])
end
return {state, redis.call('HINCRBY', KEYS[1], 'begun:' .. ARGV[1], 1)}
"""

# KEYS: job, inputs, parts. ARGV: part number, its result, seconds to keep. Returns 1 if it was taken.
_FINISH_PART = """
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'begun:' .. ARGV[1])
redis.call('HSET', KEYS[1], 'changed_at', redis.call('TIME')[1])
if redis.call('HLEN', KEYS[3]) == tonumber(redis.call('HGET', KEYS[1], 'parts')) then
  redis.call('HSET', KEYS[1], 'state', 'done')
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[3]) end
return 1
"""

#: KEYS: job, inputs, parts. ARGV: final state, error (JSON or empty), expected `changed_at` (empty: any).
#: Ends a job that is not over. Returns the state that it then has, or nil when the job is gone.
END_JOB = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or (state ~= 'queued' and state ~= 'running') then return state end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'changed_at') ~= ARGV[3] then return state end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'error', ARGV[2], 'changed_at', redis.call('TIME')[1])
redis.call('DEL', KEYS[2], KEYS[3])
return ARGV[1]
"""


def job_keys(keys: Keys, job_id: str) -> list[str]:
    """Return the job's keys in the order that the scripts expect."""
    return [keys.job(job_id), keys.job_inputs(job_id), keys.job_parts(job_id)]


def error_to_json(error: ForecacheError) -> str:
    """Return the error as jobs store it."""
    return json.dumps(error.to_json())


def run_part(client: redis.Redis, keys: Keys, scorer: JobScorer, job_id: str, part: int) -> None:
    """Compute one part of a job and keep its predictions. Safe to run twice; the job fails if it is begun too often.

    A part of a job that is gone, cancelled or failed is dropped. When the part fails as a whole, so does the
    job; a single bad row is only that row's error.
    """
    touched = job_keys(keys, job_id)
    state, begun = cast("list[Any]", client.eval(_BEGIN, 1, touched[0], str(part)))
    rows = client.hget(touched[1], str(part))
    if state != JobState.RUNNING.value.encode() or rows is None:
        return
    if begun > MAX_BEGUN:
        killer = PredictionFailed(f"part {part} was begun {MAX_BEGUN} times and ended its worker each time")
        client.eval(END_JOB, 3, *touched, JobState.FAILED.value, error_to_json(killer), "")
        return
    try:
        scored = _score(scorer, cast(dict[bytes, bytes], client.hgetall(touched[0])), json.loads(rows))
        result = json.dumps(scored)
    except ForecacheError as error:
        client.eval(END_JOB, 3, *touched, JobState.FAILED.value, error_to_json(error), "")
    except Exception:
        failed = Defect("a worker failed on this job, not the model; the worker's log says why")
        client.eval(END_JOB, 3, *touched, JobState.FAILED.value, error_to_json(failed), "")
        raise
    else:
        client.eval(_FINISH_PART, 3, *touched, str(part), result, str(JOB_KEEP_S))


def _score(scorer: JobScorer, record: Mapping[bytes, bytes], rows: list[Any]) -> dict[str, Any]:
    model = record[b"model"].decode()
    deadline = float(record[b"deadline"]) if record[b"deadline"] else None
    if record[b"kind"] == b"instances":
        return scorer.predict_instances(model, rows, deadline=deadline)
    overrides = json.loads(record[b"overrides"]) if record[b"overrides"] else None
    return scorer.predict_entities(model, rows, overrides=overrides, deadline=deadline)
