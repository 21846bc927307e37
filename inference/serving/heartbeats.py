"""Signs of life from the API's side: whether any worker is there, and that this process is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from inference.errors import StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger
from inference.presence import Roster

log = get_logger(__name__)

#: seconds between two looks: three small reads of Redis; while nobody is there, so that a worker which has just said
#: that it is ready is used at once
LOOK_EVERY_S, LOOK_WHILE_ABSENT_EVERY_S = 1.0, 0.1
#: seconds between two beats of an API process, and after how long a silence it counts as gone
BEAT_EVERY_S, GONE_AFTER_S = 2.0, 10


async def watch_workers(
    look: Callable[[], Awaitable[Roster]], tell: Callable[[bool], None], *, every_s: float = LOOK_EVERY_S
) -> None:
    """Look again and again until cancelled, and tell whether a worker is ready; an outage tells nothing."""
    failures = Failures(__name__, "attendance")
    while True:
        present = True
        with failures.kept_here():
            try:
                roster = await look()
            except StoreUnavailable as error:
                log.debug("attendance.unknown", error=error.message)
            else:
                present = any(worker.ready for worker in roster.alive)
                tell(present)
        await asyncio.sleep(every_s if present else min(every_s, LOOK_WHILE_ABSENT_EVERY_S))


async def send_heartbeats(beat: Callable[[], Awaitable[None]], *, every_s: float = BEAT_EVERY_S) -> None:
    """Call `beat` again and again until cancelled; one that an outage swallows is made good by the next."""
    failures = Failures(__name__, "heartbeat")
    while True:
        with failures.kept_here():
            try:
                await beat()
            except StoreUnavailable as error:
                log.debug("heartbeat.lost", error=error.message)
        await asyncio.sleep(every_s)
