"""What `up` prints: the lines of all processes in one form, and a table of their states."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from app.local.loglines import LogLine, LogReader
from app.local.programs import Program

_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LEVEL_COLORS = {"debug": 2, "warning": 33, "error": 31}
_LONGEST_LEVEL = len("warning")
#: a line without an end is printed in pieces of this many bytes
_LONGEST_LINE = 64 * 1024
#: quick deaths in a row after which the table shows the program that keeps dying
KEEPS_DYING = 3
_HEADS = ("process", "pid", "state", "URL")


class Output:
    """Prints whole lines of several processes to one stream. `as_json`: each line is an object."""

    def __init__(self, names: list[str], stream: TextIO, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._width = max(map(len, [*names, "up"]))
        self._colorful = stream.isatty() and not os.environ.get("NO_COLOR")
        self._colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}

    def say(self, text: str, level: str = "info") -> None:
        """Print a line of the supervisor itself."""
        self.line("up", LogLine(time.strftime("%H:%M:%S"), level, text))

    def line(self, name: str, line: LogLine) -> None:
        """Print one line. When the reader or the terminal has gone, print nothing and go on."""
        text = _as_json(name, line) if self._as_json else self._in_words(name, line)
        try:
            print(text, file=self._stream, flush=True)
        except OSError:
            self._stream = open(os.devnull, "w")  # noqa: PTH123, SIM115 - kept open until the process ends

    def _in_words(self, name: str, line: LogLine) -> str:
        head = self._painted(f"{name:<{self._width}} |", self._colors.get(name))
        level = self._painted(f"{line.level:<{_LONGEST_LEVEL}}", _LEVEL_COLORS.get(line.level))
        return f"{head} {line.at} {level} {line.text}"

    def _painted(self, text: str, color: int | None) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._colorful and color else text


def _as_json(name: str, line: LogLine) -> str:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    fields = line.fields or {"event": line.text, "level": line.level, "timestamp": now}
    # a worker calls itself "gpu", the supervisor knows that it is "batch-1"
    return json.dumps({**fields, "process": name})


class Lines:
    """Splits the output of one process into lines and prints them. `on_text` gets the text of each printed line."""

    def __init__(self, name: str, output: Output, on_text: Callable[[str], None] | None = None) -> None:
        self._name = name
        self._output = output
        self._on_text = on_text
        self._reader = LogReader()
        self._rest = b""
        #: the newest lines as the process wrote them; they tell why it ended
        self.last: deque[str] = deque(maxlen=20)

    def take(self, data: bytes) -> None:
        """Take a piece of the output; a piece may end anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._emit(line)

    def close(self) -> None:
        """Print a last line that has no end."""
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.last.append(text)
        read = self._reader.read(text)
        if read is None:
            return
        self._output.line(self._name, read)
        if self._on_text:
            self._on_text(read.text)


@dataclass
class _Row:
    url: str
    pid: int | None = None
    state: str = "waiting"
    #: time.monotonic
    ready_at: float | None = None


class Board:
    """Keeps the state of every program and prints the table: once all are ready, and again after a death.

    `say` prints a line of the supervisor with its level.
    """

    def __init__(self, programs: Sequence[Program], say: Callable[[str, str], None]) -> None:
        self._rows = {program.name: _Row(program.url) for program in programs}
        self._say = say
        self._started_at = time.monotonic()
        self._told = False
        self._again = False

    def started(self, name: str, pid: int) -> None:
        """Note a new process."""
        row = self._rows[name]
        row.pid, row.state, row.ready_at = pid, "starting", None

    def ready(self, name: str) -> None:
        """Note that a process does its work. If it was the last one missing, print the table."""
        row = self._rows[name]
        if row.state != "starting":
            return
        row.state, row.ready_at = "ready", time.monotonic()
        if not self._told and all(row.state == "ready" for row in self._rows.values()):
            self._tell_all_ready()

    def worked_s(self, name: str) -> float:
        """Return for how long a process has been ready; 0 if it is not."""
        ready_at = self._rows[name].ready_at
        return 0.0 if ready_at is None else time.monotonic() - ready_at

    def died(self, name: str, manner: str, wait_s: float, quick_deaths: int) -> None:
        """Print a death and the time of the restart; print the table when the program keeps dying."""
        when = f"in {wait_s:g} s" if wait_s else "now"
        row = self._rows[name]
        row.pid, row.state, row.ready_at = None, f"restarting {when}", None
        self._told = False
        self._say(f"{name} ended ({manner}), restarting {when}", "warning")
        if quick_deaths == KEEPS_DYING:
            self._tell("warning")
            self._say(f"{name} keeps dying: its own lines above say why", "warning")

    def tell_if_waiting(self) -> None:
        """Print the table if a program is not ready."""
        missing = [name for name, row in self._rows.items() if row.state != "ready"]
        if missing:
            self._tell("warning")
            self._say(f"not ready yet: {', '.join(missing)}; their own lines above say more", "warning")

    def _tell_all_ready(self) -> None:
        self._tell("info")
        took_s = time.monotonic() - self._started_at
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
