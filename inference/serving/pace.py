"""How long a model's micro-batches take, and so how long a queue of them is."""

from __future__ import annotations

#: weight of the newest micro-batch: old ones fade within about ten
_NEWEST = 0.2


class Pace:
    """The smoothed time of a micro-batch, in seconds; 0 until the first has come back."""

    def __init__(self) -> None:
        self.took_s = 0.0

    def learn(self, took_s: float) -> None:
        """Take in one more micro-batch."""
        self.took_s = took_s if self.took_s == 0 else self.took_s + _NEWEST * (took_s - self.took_s)

    def answer_s(self, ahead: int, lanes: int) -> float:
        """Return when an answer may be expected: `ahead` micro-batches wait before it, for `lanes` lanes in use."""
        return self.took_s * (1 + ahead // lanes)
