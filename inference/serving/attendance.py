"""Tells whoever asks workers whether any is there, by the workers' own signs of life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from inference.errors import StoreUnavailable
from inference.logs import get_logger
from inference.presence import Roster

log = get_logger(__name__)

#: seconds between two looks: three small reads of Redis
LOOK_EVERY_S = 1.0


async def follow_attendance(
    look: Callable[[], Awaitable[Roster]], tell: Callable[[bool], None], *, every_s: float = LOOK_EVERY_S
) -> None:
    """Look again and again until cancelled, and tell whether a worker is ready; an outage tells nothing."""
    while True:
        try:
            roster = await look()
        except StoreUnavailable as error:
            log.debug("attendance.unknown", error=error.message)
        else:
            tell(any(worker.ready for worker in roster.alive))
        await asyncio.sleep(every_s)
