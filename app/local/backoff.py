"""How long to wait before a process that died is started again."""

from __future__ import annotations

#: a process that lived at least this long did its work: its next start is not delayed
LONG_LIFE_S = 10.0
LONGEST_WAIT_S = 30.0


class Backoff:
    """Counts quick deaths in a row: the first restart comes at once, the next after 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self.quick_deaths = 0

    def after_death(self, lived_s: float) -> float:
        """Return the seconds to wait, given how long the process lived."""
        self.quick_deaths = 0 if lived_s >= LONG_LIFE_S else self.quick_deaths + 1
        return 0.0 if self.quick_deaths <= 1 else min(LONGEST_WAIT_S, 2.0 ** (self.quick_deaths - 2))
