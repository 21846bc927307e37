"""How a request was answered: the words that responses, counters and pages share."""

from __future__ import annotations

from enum import StrEnum


class Source(StrEnum):
    """Where an answer's number came from."""

    #: scored ahead by a run
    BATCH = "batch"
    #: computed on demand after a miss
    REALTIME = "realtime"
    #: the model's declared default: nothing better was to be had
    DEFAULT = "default"


class Outcome(StrEnum):
    """What became of one request for one entity. The seven are counted; they add up to all requests."""

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
    #: no answer: 503
    SHED = "shed"

    # attributes, not properties: each answer is asked for them, and looking a member up takes its time
    #: whether it counts into the hit rate's numerator
    is_hit: bool
    #: whether the answer is older than asked for
    is_stale: bool
    #: whether the answer is less than the request asked for
    is_degraded: bool

    def __init__(self, word: str) -> None:
        self.is_hit = word in ("hit_batch", "hit_realtime")
        self.is_stale = word in ("stale", "previous")
        self.is_degraded = word in ("stale", "previous", "default")
