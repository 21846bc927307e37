"""The children's lines, each behind the name of who said it, all in one form: name, time, level, text."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from time import strftime
from typing import TextIO

from app.local.loglines import LogLine, LogReader

_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LEVEL_COLORS = {"debug": 2, "warning": 33, "error": 31}
_LONGEST_LEVEL = len("warning")
#: a line without an end is passed on in pieces of this many bytes
_LONGEST_LINE = 64 * 1024


class Output:
    """Prints lines of several writers to one stream, whole lines only; `as_json`: each line an object."""

    def __init__(self, names: list[str], stream: TextIO, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._width = max(map(len, [*names, "up"]))
        self._colorful = stream.isatty() and not os.environ.get("NO_COLOR")
        self._colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}

    def say(self, text: str, level: str = "info") -> None:
        """Print a line of the supervisor itself."""
        self.line("up", LogLine(strftime("%H:%M:%S"), level, text))

    def line(self, name: str, line: LogLine) -> None:
        """Print one line; a reader that went away is no reason to stop serving."""
        text = _as_json(name, line) if self._as_json else self._in_words(name, line)
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
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
    # which of several workers it is, the supervisor knows better
    return json.dumps({**fields, "process": name})


class Lines:
    """Takes one process's bytes as they come and hands on its lines. Shaped as circus calls a stream."""

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._output = output
        self._reader = LogReader()
        self._rest = b""
        #: the newest lines as they were said, for saying why a process ended
        self.last: deque[str] = deque(maxlen=20)
        #: told the text of each line that is printed
        self.on_text: Callable[[str], None] | None = None

    def __call__(self, data: dict[str, bytes]) -> None:
        """Take {"data": bytes}."""
        *lines, self._rest = (self._rest + data["data"]).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._emit(line)

    def close(self) -> None:
        """Hand on a last line without an end."""
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
        if self.on_text:
            self.on_text(read.text)


def standard_output(names: list[str], *, as_json: bool = False) -> Output:
    """Return an Output on this process's standard output."""
    return Output(names, sys.stdout, as_json=as_json)
