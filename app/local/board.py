"""What each process is doing, and when to tell it: once all are ready, again after a trouble, and in a lasting one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.local.programs import Program

#: quick deaths in a row after which the table shows who keeps dying
KEEPS_DYING = 3

_HEADS = ("process", "pid", "state", "URL")


@dataclass
class _Row:
    url: str
    pid: int | None = None
    state: str = "waiting"
    #: time.monotonic
    ready_at: float | None = None


class Board:
    """The state of every program. `say` prints a line of the supervisor with its level."""

    def __init__(self, programs: Sequence[Program], say: Callable[[str, str], None]) -> None:
        self._rows = {program.name: _Row(program.url) for program in programs}
        self._say = say
        self._started = time.monotonic()
        self._told = False
        self._again = False

    def is_starting(self, name: str) -> bool:
        """Whether a process runs of which nobody knows yet that it is ready."""
        return self._rows[name].state == "starting"

    def started(self, name: str, pid: int) -> None:
        """Take note of a new process."""
        row = self._rows[name]
        row.pid, row.state, row.ready_at = pid, "starting", None

    def ready(self, name: str) -> None:
        """Take note that a process does its work; tell the table when it was the last one missing."""
        if not self.is_starting(name):
            return
        row = self._rows[name]
        row.state, row.ready_at = "ready", time.monotonic()
        if not self._told and all(row.state == "ready" for row in self._rows.values()):
            self._tell_all_ready()

    def worked_s(self, name: str) -> float:
        """Return for how long a process has been ready; 0 when it never was."""
        ready_at = self._rows[name].ready_at
        return 0.0 if ready_at is None else time.monotonic() - ready_at

    def died(self, name: str, manner: str, wait_s: float, quick_deaths: int) -> None:
        """Tell a death and what follows; the whole table when it has become a habit."""
        when = f"in {wait_s:g} s" if wait_s else "now"
        row = self._rows[name]
        row.pid, row.state = None, f"restarting {when}"
        self._told = False
        self._say(f"{name} ended ({manner}), restarting {when}", "warning")
        if quick_deaths == KEEPS_DYING:
            self._tell("warning")
            self._say(f"{name} keeps dying: its own lines above say why", "warning")

    def tell_if_waiting(self) -> None:
        """Tell the table when someone is still missing."""
        missing = [name for name, row in self._rows.items() if row.state != "ready"]
        if missing:
            self._tell("warning")
            self._say(f"not ready yet: {', '.join(missing)}; their own lines above say more", "warning")

    def _tell_all_ready(self) -> None:
        self._tell("info")
        took_s = time.monotonic() - self._started
        self._say(
            "all ready again" if self._again else f"all ready after {took_s:.0f} s; Ctrl-C stops everything", "info"
        )
        self._told = self._again = True

    def _tell(self, level: str) -> None:
        for line in table_lines([_HEADS, *((n, str(r.pid or "-"), r.state, r.url) for n, r in self._rows.items())]):
            self._say(line, level)


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
