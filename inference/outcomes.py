"""Defines how a request was answered, for responses, counters and pages alike."""

from __future__ import annotations

from enum import StrEnum


class AnswerSource(StrEnum):
    """Where an answer's number came from."""

    #: computed in advance by a run
    BATCH = "batch"
    #: computed on demand after a miss
    REALTIME = "realtime"
    #: the model's declared default, as nothing better was available
    DEFAULT = "default"


class Outcome(StrEnum):
    """The result of one request for one entity. All are counted; the hit rate ignores `UNKNOWN`."""

    #: answered from a generation, within its age limit
    HIT_BATCH = "hit_batch"
    #: answered from the overlay, within its age limit
    HIT_REALTIME = "hit_realtime"
    #: a miss, computed in time
    COMPUTED = "computed"
    #: the stored value, older than requested, as nothing newer came in time
    STALE = "stale"
    #: the previous generation's value
    PREVIOUS = "previous"
    #: the model's declared default
    DEFAULT = "default"
    #: no answer in time, but a retry may succeed: 503
    SHED = "shed"
    #: no answer, and a retry does not help: the model or the entity's features failed
    FAILED = "failed"
    #: nobody knows the entity: 404
    UNKNOWN = "unknown"

    # attributes, not properties: each answer reads them, and attributes are faster
    #: whether it counts into the hit rate's denominator
    is_rated: bool
    #: whether it counts into the hit rate's numerator
    is_hit: bool
    #: whether the answer is older than requested
    is_stale: bool
    #: whether the answer is worse than requested
    is_degraded: bool

    def __init__(self, word: str) -> None:
        self.is_rated = word != "unknown"
        self.is_hit = word in ("hit_batch", "hit_realtime")
        self.is_stale = word in ("stale", "previous")
        self.is_degraded = word in ("stale", "previous", "default")
