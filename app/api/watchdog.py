"""Says in the log when the event loop stands still, and what it is doing: nothing else is answered meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from inference.logs import get_logger

log = get_logger(__name__)

#: how often the loop shows that it moves, and how often somebody looks
BEAT_S = 0.05
#: a loop that has not moved for so long stands
STANDS_AFTER_S = 0.2
#: of the calls that the loop is in, how many are named, the innermost first
_NAMED_CALLS = 8


@contextmanager
def loop_watched() -> Iterator[None]:
    """Watch the running event loop, whose thread this is, until the block ends."""
    watchdog = _Watchdog(asyncio.get_running_loop(), threading.get_ident())
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    """Two sides: a timer in the loop, and a thread that looks when it last struck. A stand is told once.

    A thread that computes in C holds the interpreter, so that nobody can look meanwhile: then the stand is told at its
    end, with the call that has just returned.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._moved_at = time.monotonic()
        self._timer = loop.call_later(BEAT_S, self._beat)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End both sides."""
        self._timer.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        self._moved_at = time.monotonic()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        told = 0.0
        while not self._stopped.wait(BEAT_S):
            since = self._moved_at
            stands_s = time.monotonic() - since
            if stands_s < STANDS_AFTER_S or since == told:
                continue
            frame = sys._current_frames().get(self._thread_id)
            # a loop that waits for events was merely given no processor time
            if frame is not None and not _waits(frame):
                told = since
                log.warning("loop.stands", stands_ms=round(stands_s * 1000), doing=_calls(frame))


def _waits(frame: FrameType) -> bool:
    return frame.f_code.co_name == "select" and frame.f_globals.get("__name__") == "selectors"


def _calls(frame: FrameType) -> str:
    """Return the innermost calls of a thread, on one line."""
    calls = traceback.extract_stack(frame)[: -_NAMED_CALLS - 1 : -1]
    return " < ".join(f"{call.name} ({'/'.join(call.filename.rsplit('/', 2)[-2:])}:{call.lineno})" for call in calls)
