"""Limits what clients may take of a process: sizes of heads and bodies, memory of all requests, connections, time."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Collection
from itertools import islice
from typing import Protocol

from fastapi import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import respond_to_status
from inference.errors import Overloaded
from inference.logs import get_logger

log = get_logger(__name__)

#: limit of a request line and its headers together; also of the bytes between two bytes of a body, and of trailers
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 1000
MAX_BODY_BYTES = 8 * 1024 * 1024
#: limit of all current requests of a process together: bytes of their heads and bodies, and of unpacked bodies
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
#: key in a request's scope: the bytes that it holds
HELD = "forecache.held"
#: from the opening of a connection to the end of the first head, and from a head's first byte to its end
HEAD_TIMEOUT_S = 10.0
#: for a client to send a body or to take an answer; each 32 KiB that have moved add a second
BODY_TIMEOUT_S = 10.0
BODY_BYTES_PER_S = 32 * 1024
#: between two bytes of a body that the client sends, or of an answer that it takes
PAUSE_S = 10.0
#: for a refused client to read the refusal
FAREWELL_S = 2.0
#: number of the oldest requests that may have to give up for a new one
_ASKED_AT_ONCE = 64
#: a search frees one place, and one more for each 256 connections, so that newcomers search rarely
_SEARCHED_FOR_ONE = 256
#: interval of the searches while every client waits for an answer
_SEARCH_EVERY_S = 0.1
_WARN_EVERY_S = 60.0


def is_head_too_large(scope: Scope) -> bool:
    """Return whether a whole head is over the limits."""
    lines = scope["headers"]
    url = len(scope["raw_path"]) + len(scope["query_string"])
    size = url + sum(len(name) + len(value) + len(b": \r\n") for name, value in lines)
    return size > MAX_HEAD_BYTES or len(lines) > MAX_HEADERS


def respond_to_large_head(url: bytes, path: str) -> Response:
    """Return the response to a head or trailers over the limits: 414 if the URL alone is too long, otherwise 431."""
    if len(url) > MAX_HEAD_BYTES // 2:
        return respond_to_status(414, f"the URL is too long: URL and headers may have {MAX_HEAD_BYTES} bytes")
    limit = f"{MAX_HEAD_BYTES} bytes and {MAX_HEADERS} lines"
    return respond_to_status(431, f"headers or trailers are too large: they may have {limit}", path)


def server_full() -> Overloaded:
    """Return the error for a request that the process has no memory or no connection for."""
    return Overloaded("the server holds too many other requests: send this one again", retry_after_s=1.0)


class RequestMemory:
    """Limits the bytes that all requests of a process hold together.

    Over the limit, the requests that have waited longest for their own clients give up first: so slow clients cannot
    take the memory that fast ones need.
    """

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.held = 0
        #: taken to unpack a piece of a body: one piece in a turn of the event loop, so that other requests go on
        self.unpacking = asyncio.Lock()
        self._limit = limit
        self._holders: dict[HeldBytes, None] = {}  # the oldest first

    def change(self, holder: HeldBytes, size: int) -> None:
        """Let a request hold this number of bytes.

        Raises:
            Overloaded: the limit is reached, and none of the oldest requests waits for its client.
        """
        self.held += size - holder.size
        holder.size = size
        if not size:
            self._holders.pop(holder, None)
            return
        self._holders.setdefault(holder)
        if self.held > self._limit:
            self._free(holder)

    def _free(self, newest: HeldBytes) -> None:
        for oldest in list(islice(self._holders, _ASKED_AT_ONCE)):
            if oldest is newest:
                continue
            del self._holders[oldest]
            if oldest.give_up():
                self.held -= oldest.size
                oldest.size, oldest.has_given_up = 0, True
            else:
                self._holders[oldest] = None  # at the end: next time others have to answer
            if self.held <= self._limit:
                return
        self.change(newest, 0)
        raise server_full()


class HeldBytes:
    """The bytes that one request holds. `give_up`: ends the request if it waits for its client; returns whether."""

    __slots__ = ("give_up", "has_given_up", "memory", "size")

    def __init__(self, memory: RequestMemory, give_up: Callable[[], bool]) -> None:
        self.memory = memory
        self.give_up = give_up
        self.has_given_up = False
        self.size = 0

    def set(self, size: int) -> None:
        """Hold this number of bytes from now on.

        Raises:
            Overloaded: the limit is reached, or this request gave up for a newer one.
        """
        if size and self.has_given_up:
            raise server_full()
        self.memory.change(self, size)


class BodyLimit:
    """ASGI middleware: answers 413 when a body is over the limit, also if it declared less, and 503 without memory."""

    def __init__(self, app: ASGIApp, memory: RequestMemory, limit: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._memory = memory
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, self._memory, self._limit)
        scope[HELD] = body.held
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.held.set(0)


class _Body:
    """A request's body while it arrives. It holds its bytes until the request is answered."""

    def __init__(self, scope: Scope, receive: Receive, memory: RequestMemory, limit: int) -> None:
        self.held = HeldBytes(memory, self._give_up)
        self._declared = _declared_length(scope)
        self._receive = receive
        self._limit = limit
        self._received = 0
        self._is_whole = False
        self._wait: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """Return the server's next message.

        Raises:
            HTTPException: 413, the body is over the limit.
            Overloaded: there is no memory for it, or newer bodies needed its memory.
        """
        if self._is_whole:  # the next message can only say that the client is gone
            return await self._receive()
        self._check(self._declared)  # before the server tells the client to go on
        message = await self._next_piece()
        size = len(message.get("body", b""))
        self._received += size
        self._check(self._received)
        self._is_whole = not message.get("more_body", False)
        self.held.set(self.held.size + size)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            # nobody reads the rest, so the client must not send its next request behind it
            raise HTTPException(413, f"the body is over {self._limit} bytes: send it in parts", {"Connection": "close"})

    async def _next_piece(self) -> Message:
        if self.held.has_given_up:
            raise server_full()
        try:
            async with asyncio.timeout(None) as self._wait:
                return await self._receive()
        except TimeoutError:
            raise server_full() from None
        finally:
            self._wait = None

    def _give_up(self) -> bool:
        if self._is_whole:
            return False
        if self._wait is not None:
            self._wait.reschedule(asyncio.get_running_loop().time())
        return True


def _declared_length(scope: Scope) -> int:
    """Return the declared length of a request's body; 0 if the request declares none."""
    # the server refuses a length that is not a number
    return next((int(value) for name, value in scope.get("headers", ()) if name == b"content-length"), 0)


class ClientPace:
    """Decides when a client is late: how long it has taken for its next step.

    Steps: "request" (begin one), "head" and "body" (send it), "reading" (take the answer), "farewell" (read a refusal),
    "nothing" (wait for the server). `moved`: bytes of bodies that the client sent and of answers that it took.
    """

    __slots__ = ("_about", "_keep_alive_s", "_moved", "_moved_at", "_moved_before", "_since", "_step")

    def __init__(self, now: float, keep_alive_s: float) -> None:
        self._step = "head"
        self._about: object = None
        self._since = self._moved_at = now
        self._moved = self._moved_before = 0
        self._keep_alive_s = keep_alive_s

    def since(self, step: str, about: object, moved: int, now: float) -> float:
        """Return since when the client has to take this step; `about`: the request that it concerns."""
        if step != self._step or about is not self._about:
            self._step, self._about = step, about
            self._since = self._moved_at = now
            self._moved_before = moved
        return self._since

    def is_late(self, step: str, about: object, moved: int, now: float) -> bool:
        """Return whether the client takes too long for this step."""
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        took_s = now - self.since(step, about, moved, now)
        if step in ("body", "reading"):
            most_s = BODY_TIMEOUT_S + (moved - self._moved_before) / BODY_BYTES_PER_S
            return took_s > most_s or now - self._moved_at > PAUSE_S
        limits = {"head": HEAD_TIMEOUT_S, "request": self._keep_alive_s, "farewell": FAREWELL_S}
        return took_s > limits.get(step, math.inf)


class EvictableConnection(Protocol):
    """A connection that may have to make way for another one."""

    loop: asyncio.AbstractEventLoop

    def silent_since(self) -> tuple[bool, float] | None:
        """Return whether the client ever had an answer, and since when it is silent; None while it waits for us."""

    def make_way(self) -> None:
        """End the connection."""


class ConnectionLimit:
    """Limits the connections of one process. If there are too many, those that are silent for longest end first.

    `most`: the limit. `spare`: descriptors beyond it. Half of these take newcomers above the limit: long enough to
    answer probes of health, and 503 to all others.
    """

    def __init__(self, most: int, spare: int) -> None:
        self.most = most
        self._most_at_all = most + spare // 2
        self._next_search = 0.0
        self._warned_at = -_WARN_EVERY_S

    def make_place(self, connections: Collection[EvictableConnection], newcomer: EvictableConnection) -> bool:
        """End connections of silent clients. Return whether there is a place for the newcomer now."""
        now = newcomer.loop.time()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            log.warning("api.full", connections=self.most, advice="those of silent clients are ended")
        if now < self._next_search:
            return False
        silent = ((since, each) for each in connections if each is not newcomer and (since := each.silent_since()))
        leaving = heapq.nsmallest(self.most // _SEARCHED_FOR_ONE + 1, silent, key=lambda pair: pair[0])
        for _, each in leaving:
            each.make_way()
        if not leaving:
            self._next_search = now + _SEARCH_EVERY_S
        return bool(leaving)

    def is_over_all(self, count: int) -> bool:
        """Return whether this number of connections would take descriptors that the process needs for itself."""
        return count > self._most_at_all
