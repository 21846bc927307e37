"""Logs when the event loop stands still, and in which call: the process answers no other request meanwhile."""

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

#: interval of the timer in the loop, and of the checks in the thread
BEAT_S = 0.05
#: a loop that has not moved for this time stands still
STANDS_AFTER_S = 0.2
#: number of calls in the log line, innermost first
_NAMED_CALLS = 8


@contextmanager
def loop_watched() -> Iterator[None]:
    """Watch the running event loop of this thread until the block ends."""
    watchdog = _Watchdog(asyncio.get_running_loop(), threading.get_ident())
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    """A timer in the loop, and a thread that checks when it last fired. Logs each standstill once.

    C code may hold the interpreter, so that the thread cannot check meanwhile. Then it logs at the end, with the call
    that has just returned. `busy_ms` is the processor time of this process: far less than `stands_ms` means a blocking
    call or an overloaded machine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._moved_at, self._busy_s = time.monotonic(), time.process_time()
        self._timer = loop.call_later(BEAT_S, self._beat)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the timer and the thread."""
        self._timer.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        self._moved_at, self._busy_s = time.monotonic(), time.process_time()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        logged = 0.0
        while not self._stopped.wait(BEAT_S):
            since, busy_s = self._moved_at, time.process_time() - self._busy_s
            stands_s = time.monotonic() - since
            if stands_s < STANDS_AFTER_S or since == logged:
                continue
            frame = self._at_fault(stands_s, busy_s)
            if frame is not None:
                logged = since
                stand = {"stands_ms": round(stands_s * 1000), "busy_ms": round(busy_s * 1000)}
                log.warning("loop.stands", **stand, doing=_calls(frame))

    def _at_fault(self, stands_s: float, busy_s: float) -> FrameType | None:
        """Return the call that holds up the loop: the loop's own, or a thread's; None if there is neither."""
        frames = sys._current_frames()
        loops = frames.pop(self._thread_id, None)
        if loops is not None and not _is_idle(loops):
            return loops
        frames.pop(threading.get_ident(), None)
        # with hardly any processor time, no thread of this process can be the cause
        return next((each for each in frames.values() if not _is_idle(each)), None) if busy_s > stands_s / 2 else None


def _is_idle(frame: FrameType) -> bool:
    """Return whether a thread or a loop waits for an event."""
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in _IDLE


#: functions in which threads and loops wait; uvloop has no frames, so its caller's frame is the innermost
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
