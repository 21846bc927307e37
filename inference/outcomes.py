"""How a request was answered: the words that responses, counters and pages share."""

from __future__ import annotations

from enum import StrEnum


class AnswerSource(StrEnum):
    """Where an answer's number came from."""

    #: scored ahead by a run
    BATCH = "batch"
    #: computed on demand after a miss
    REALTIME = "realtime"
    #: the model's declared default: nothing better was to be had
    DEFAULT = "default"


class Outcome(StrEnum):
    """What became of one request for one entity. All are counted; the hit rate divides by all but `UNKNOWN`."""

    #: answered from a generation, within its age limit
    HIT_BATCH = "hit_batch"
    #: answered from the overlay, within its age limit
    HIT_REALTIME = "hit_realtime"
    #: a miss, computed in time
    COMPUTED = "computed"
    #: the cached value, older than asked for, since nothing newer came in time
    STALE = "stale"
    #: the previous generation's value
    PREVIOUS = "previous"
    #: the model's declared default
    DEFAULT = "default"
    #: no answer in time, and another try may have one: 503
    SHED = "shed"
    #: no answer, and another try has none either: the model or the entity's features failed
    FAILED = "failed"
    #: nobody knows the entity: 404
    UNKNOWN = "unknown"

    # attributes, not properties: each answer is asked for them, and looking a member up takes its time
    #: whether the hit rate divides by it
    is_rated: bool
    #: whether it counts into the hit rate's numerator
    is_hit: bool
    #: whether the answer is older than asked for
    is_stale: bool
    #: whether the answer is less than the request asked for
    is_degraded: bool

    def __init__(self, word: str) -> None:
        self.is_rated = word != "unknown"
        self.is_hit = word in ("hit_batch", "hit_realtime")
        self.is_stale = word in ("stale", "previous")
        self.is_degraded = word in ("stale", "previous", "default")
