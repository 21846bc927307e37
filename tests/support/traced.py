"""Runs a module as Python's -m does, and notes the functions of the product that it calls.

    python traced.py FOLDER MODULE ARGUMENT...

`FOLDER/mark` holds one byte that a test changes. Each function called since the last change is appended once to
`FOLDER/<pid>`, as `mark nanoseconds file:function`, by a clock that all processes share.
"""

from __future__ import annotations

import mmap
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = f"{Path(__file__).resolve().parents[2]}/"
ROOMS = tuple(ROOT + room for room in ("app/", "inference/", "tasks/", "workers/", "beat_schedule"))
#: no functions with a name of their own
_NAMELESS = ("<module>", "<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")


class Tracer:
    def __init__(self, folder: Path) -> None:
        with (folder / "mark").open("rb") as mark:
            self._mark = mmap.mmap(mark.fileno(), 1, access=mmap.ACCESS_READ)
        self._out = os.open(folder / str(os.getpid()), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._since = -1
        self._called: set[CodeType] = set()

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOMS):
            return
        if self._mark[0] != self._since:
            self._since = self._mark[0]
            self._called = set()
        if code in self._called:
            return
        self._called.add(code)
        if code.co_name not in _NAMELESS:
            place = f"{code.co_filename.removeprefix(ROOT)}:{code.co_qualname}"
            os.write(self._out, f"{self._since} {time.monotonic_ns()} {place}\n".encode())


def main() -> None:
    folder, module, *arguments = sys.argv[1:]
    tracer = Tracer(Path(folder))
    threading.setprofile(tracer.note)
    sys.setprofile(tracer.note)
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
