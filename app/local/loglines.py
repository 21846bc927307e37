"""Reads the log lines of each library into one form and drops the routine ones.

Forecache's processes log through `inference.logs`; Redis, TensorFlow's C++ and Python itself have their own forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import strftime
from typing import Any


@dataclass(frozen=True)
class LogLine:
    """One line as `up` prints it. `at`: wall clock, HH:MM:SS. `level`: debug, info, warning or error.

    `fields`: the whole object of a line in JSON; None for a line in words.
    """

    at: str
    level: str
    text: str
    fields: Mapping[str, Any] | None = None


_OURS = re.compile(r"(?P<at>\d\d:\d\d:\d\d) \[(?P<level>\w+) *\] (?P<text>.*)")
_REDIS = re.compile(r"\d+:[A-Z] \d\d \w{3} \d{4} (?P<at>\d\d:\d\d:\d\d)\.\d+ (?P<level>[.*#-]) (?P<text>.*)")
_REDIS_SIGNAL = re.compile(r"\d+:signal-handler \(\d+\) (?P<text>.*)")
_TENSORFLOW = re.compile(r"\d{4}-\d\d-\d\d (?P<at>\d\d:\d\d:\d\d)\.\d+: (?P<level>[IWEF]) (?P<text>.*)")
#: until absl has set up its logging, its time is 00:00 and epoch seconds
_ABSL = re.compile(r"(?P<level>[IWEF])\d{4} \d\d:\d\d:\S+ +\d+ (?P<text>\S+:\d+\] .*)")
_LIBRARY = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):(?P<text>.*)")
_PYTHON_WARNING = re.compile(r"\S+\.py:\d+: (?P<text>\w*Warning: .*)")
_COMMAND = re.compile(r"forecache: (?P<text>.*)")
_TRACEBACK = re.compile(r"\s*(\+ Exception Group )?Traceback \(most recent call last\):")

_LEVELS = {
    "critical": "error", "exception": "error", "fatal": "error",
    "I": "info", "W": "warning", "E": "error", "F": "error",
    ".": "debug", "-": "debug", "*": "info", "#": "warning",
}  # fmt: skip

#: Redis logs these as warnings at every start and stop
_REDIS_ROUTINE = re.compile(
    r"oO0OoO0OoO0Oo|Redis version=|Configuration loaded|Server initialized|User requested shutdown"
    r"|Redis is now ready to exit|Received SIG"
)
#: TensorFlow prints these at every start, with a GPU or without; the factories: tensorflow#62075
_TENSORFLOW_ROUTINE = re.compile(
    r"All log messages before absl::InitializeLog|Unable to register cu\w+ factory"
    r"|computation placer already registered|CUDA_ERROR_NO_DEVICE|Could not find cuda drivers"
    r"|Could not find TensorRT|optimized to use available CPU|oneDNN custom operations|NUMA node"
)
#: the second line of one of these notes
_TENSORFLOW_MORE = "To enable the following instructions:"
#: the name before the line says it already
_OWN_NAME = re.compile(r" process=\S+")
#: colours, and codes that move the cursor
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class LogReader:
    """Reads the lines of one process in their order. Lines after a traceback's first line belong to the traceback."""

    def __init__(self, now: Callable[[], str] = lambda: strftime("%H:%M:%S")) -> None:
        self._now = now
        self._in_traceback = False

    def read(self, line: str) -> LogLine | None:
        """Return the line in the one form; None: the line is empty or routine."""
        line = _CONTROL.sub("", line).rstrip()
        if not line or line.startswith(_TENSORFLOW_MORE):
            return None
        found = self._ours(line) or self._json(line) or self._redis(line) or self._tensorflow(line) or self._other(line)
        if found:
            self._in_traceback = False
            return found if found.text else None
        if _TRACEBACK.match(line):
            self._in_traceback = True
        return LogLine(self._now(), "error" if self._in_traceback else "info", line)

    def _ours(self, line: str) -> LogLine | None:
        match = _OURS.fullmatch(line)
        return LogLine(match["at"], _level(match["level"]), _OWN_NAME.sub("", match["text"])) if match else None

    def _json(self, line: str) -> LogLine | None:
        if not line.startswith("{"):
            return None
        try:
            fields = json.loads(line)
        except ValueError:  # a printed dictionary
            return None
        if not isinstance(fields.get("event"), str):
            return None
        return LogLine(self._now(), _level(str(fields.get("level", "info"))), fields["event"], fields)

    def _redis(self, line: str) -> LogLine | None:
        if match := _REDIS_SIGNAL.fullmatch(line):
            return LogLine(self._now(), "info", match["text"])
        match = _REDIS.fullmatch(line)
        if not match:
            return None
        level = "info" if _REDIS_ROUTINE.search(match["text"]) else _level(match["level"])
        return LogLine(match["at"], level, match["text"])

    def _tensorflow(self, line: str) -> LogLine | None:
        """Read a line of TensorFlow, XLA or absl from C++. Drops their infos, which are for their developers."""
        match = _TENSORFLOW.fullmatch(line) or _ABSL.fullmatch(line)
        if not match:
            return None
        is_routine = match["level"] == "I" or _TENSORFLOW_ROUTINE.search(match["text"])
        return LogLine(
            match.groupdict().get("at") or self._now(), _level(match["level"]), "" if is_routine else match["text"]
        )

    def _other(self, line: str) -> LogLine | None:
        if match := _LIBRARY.fullmatch(line):
            is_routine = _TENSORFLOW_ROUTINE.search(match["text"])
            return LogLine(self._now(), _level(match["level"].lower()), "" if is_routine else match["text"].strip())
        if match := _PYTHON_WARNING.fullmatch(line):
            return LogLine(self._now(), "warning", match["text"])
        if match := _COMMAND.fullmatch(line):
            return LogLine(self._now(), "error", match["text"])
        return None


def _level(name: str) -> str:
    return _LEVELS.get(name, name)
