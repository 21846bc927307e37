"""The children's lines, each behind the name of who said it."""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TextIO

_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
#: a line without an end is passed on in pieces of this many bytes
_LONGEST_LINE = 64 * 1024


class Output:
    """Prints lines of several writers to one stream, whole lines only."""

    def __init__(self, names: list[str], stream: TextIO) -> None:
        self._stream = stream
        self._width = max(map(len, [*names, "up"]))
        colorful = stream.isatty() and "NO_COLOR" not in os.environ
        self._colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)} if colorful else {}

    def line(self, name: str, text: str) -> None:
        """Print one line; a reader that went away is no reason to stop serving."""
        color = self._colors.get(name)
        prefix = f"{name:<{self._width}} | "
        try:
            print(
                f"\x1b[{color}m{prefix}\x1b[0m{text}" if color else prefix + text,
                file=self._stream,
                flush=True,
            )
        except BrokenPipeError:
            self._stream = open(os.devnull, "w")  # noqa: PTH123, SIM115 - kept open until the process ends


class Lines:
    """Takes one process's bytes as they come and hands on its lines. Shaped as circus calls a stream."""

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._output = output
        self._rest = b""
        #: the newest lines, for saying why a process ended
        self.last: deque[str] = deque(maxlen=20)

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
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.last.append(text)
        self._output.line(self._name, text)


def standard_output(names: list[str]) -> Output:
    """Return an Output on this process's standard output."""
    return Output(names, sys.stdout)
