"""Requests at a held rate: each is due at its instant, whatever became of the earlier ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """One request: what it came to, and how long that took from when it was due."""

    outcome: str
    latency_s: float
    #: how long after its instant it went out: a part of the latency
    late_s: float


async def hold_rate(
    asks: Sequence[T], ask: Callable[[T], Awaitable[str]], *, rate_rps: float, connections: int
) -> list[Answered]:
    """Ask each at its instant, at most `connections` at once, and return the answers in the order of being due.

    `ask` returns the outcome. Latency counts from the instant, so that a service which holds its callers up cannot
    hide it (coordinated omission).
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    room = asyncio.Semaphore(connections)

    async def at(position: int, what: T) -> Answered:
        due = begun + position / rate_rps
        await asyncio.sleep(max(0.0, due - loop.time()))
        async with room:
            sent = loop.time()
            outcome = await ask(what)
            return Answered(outcome, loop.time() - due, sent - due)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(at(position, what)) for position, what in enumerate(asks)]
    return [task.result() for task in tasks]
