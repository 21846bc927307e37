"""Streams over gRPC: each message is a request of its own, and gets one response, in the order of the messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext

from app.api.grpc_calls import Answer
from inference.errors import Overloaded

#: messages of one stream that are computed, or wait to be sent, at a time; a client that does not read gets no further
AT_A_TIME = 8
#: streams of one process: an idle one takes a place among the calls
MAX_STREAMS = 128


@dataclass(frozen=True)
class StreamAnswer:
    """How to answer each message of a method.

    `refuse`: returns the response for a message, None if it cannot be read, and the text of an error.
    """

    answer: Answer
    refuse: Callable[[Any, str], Any]


class Streams:
    """Serves streams, and counts those that are open."""

    def __init__(self) -> None:
        self._open = 0

    async def serve(self, context: ServicerContext[bytes, bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Answer each message until the client has sent its last one.

        Raises:
            Overloaded: too many streams are open.
            ForecacheError: `answer` raised it.
        """
        if self._open >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams are open already: end some, or send single requests")
        self._open += 1
        try:
            await _serve(context, answer)
        finally:
            self._open -= 1


async def _serve(context: ServicerContext[bytes, bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
    answers: deque[asyncio.Task[bytes]] = deque()
    reading: asyncio.Task[Any] | None = asyncio.create_task(_read(context))
    try:
        while reading or answers:
            may_read = reading is not None and len(answers) < AT_A_TIME
            awaited = [*([reading] if reading is not None and may_read else []), *list(answers)[:1]]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and may_read and reading.done():
                message, reading = reading.result(), None
                if isinstance(message, bytes):
                    answers.append(asyncio.create_task(_answered(answer, message)))
                    reading = asyncio.create_task(_read(context))
            if answers and answers[0].done():
                # waits until the client has room: then no further message is read, either
                await context.write(answers.popleft().result())
    finally:
        for task in (*answers, *([reading] if reading else [])):
            task.cancel()


async def _read(context: ServicerContext[bytes, bytes]) -> Any:
    return await context.read()


async def _answered(answer: Callable[[bytes], Awaitable[bytes]], message: bytes) -> bytes:
    return await answer(message)
