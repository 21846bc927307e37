"""How long to wait before a process that died is started again."""

from __future__ import annotations

#: a process that worked for at least this long is no trouble: its next start is not delayed
LONG_LIFE_S = 10.0
LONGEST_WAIT_S = 30.0


class Backoff:
    """Counts quick deaths in a row: the first restart comes at once, the next after 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self.quick_deaths = 0

    def after_death(self, worked_s: float) -> float:
        """Return the seconds to wait. `worked_s`: for how long it was ready; a slow start is no long life."""
        self.quick_deaths = 0 if worked_s >= LONG_LIFE_S else self.quick_deaths + 1
        return 0.0 if self.quick_deaths <= 1 else min(LONGEST_WAIT_S, 2.0 ** (self.quick_deaths - 2))
