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

    Whoever computes in C holds the interpreter, so that nobody can look meanwhile: then the stand is told at its end,
    with the call that has just returned. `busy_ms` is the processor time that this process had: far less than
    `stands_ms` means a blocking call, or a machine that has too much to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._moved_at, self._busy_s = time.monotonic(), time.process_time()
        self._timer = loop.call_later(BEAT_S, self._beat)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End both sides."""
        self._timer.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        self._moved_at, self._busy_s = time.monotonic(), time.process_time()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        told = 0.0
        while not self._stopped.wait(BEAT_S):
            since, busy_s = self._moved_at, time.process_time() - self._busy_s
            stands_s = time.monotonic() - since
            if stands_s < STANDS_AFTER_S or since == told:
                continue
            frame = self._at_fault(stands_s, busy_s)
            if frame is not None:
                told = since
                stand = {"stands_ms": round(stands_s * 1000), "busy_ms": round(busy_s * 1000)}
                log.warning("loop.stands", **stand, doing=_calls(frame))

    def _at_fault(self, stands_s: float, busy_s: float) -> FrameType | None:
        """Return what keeps the loop: its own call, or that of a thread which lets nobody else in; None if neither."""
        frames = sys._current_frames()
        own = frames.pop(self._thread_id, None)
        if own is not None and not _is_idle(own):
            return own
        frames.pop(threading.get_ident(), None)
        # a process that had hardly any processor time is not at fault
        return next((each for each in frames.values() if not _is_idle(each)), None) if busy_s > stands_s / 2 else None


def _is_idle(frame: FrameType) -> bool:
    """Whether a thread waits for an event, or a loop for one of its own."""
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in _IDLE


#: where threads and loops wait; uvloop has no frames of its own, so that its caller's is the innermost
_IDLE = {
    ("selectors", "select"),
    ("asyncio.runners", "run"),
    ("asyncio.base_events", "run_forever"),
    ("asyncio.base_events", "run_until_complete"),
    ("concurrent.futures.thread", "_worker"),
    ("threading", "wait"),
}


def _calls(frame: FrameType) -> str:
    """Return the innermost calls of a thread, on one line."""
    calls = traceback.extract_stack(frame)[: -_NAMED_CALLS - 1 : -1]
    return " < ".join(f"{call.name} ({'/'.join(call.filename.rsplit('/', 2)[-2:])}:{call.lineno})" for call in calls)
