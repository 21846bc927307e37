"""Bounds the memory of a process that requests may take: each body, and all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.errors import Overloaded

MAX_BODY_BYTES = 8 * 1024 * 1024
#: of all requests under way in a process: what has come of their heads and bodies, and what was unpacked of them
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
#: where a request's scope has the bytes that it holds
HOLD = "forecache.hold"
#: so many of the oldest holds are asked to make room for a new one
_ASKED_AT_ONCE = 64


class Room:
    """The bytes that all requests of a process may hold together.

    When they are over the limit, the requests go first that have waited for their own clients for longest: slow
    senders cannot hold what fast ones need.
    """

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.held = 0
        #: who unpacks the next piece of a body: one a turn of the event loop, so that other requests have theirs
        self.unpacking = asyncio.Lock()
        self._limit = limit
        self._holds: dict[Hold, None] = {}  # the oldest first

    def change(self, hold: Hold, size: int) -> None:
        """Let a request hold so many bytes.

        Raises:
            Overloaded: there is no room, and none of the oldest requests waits for its client.
        """
        self.held += size - hold.size
        hold.size = size
        if not size:
            self._holds.pop(hold, None)
            return
        self._holds.setdefault(hold)
        if self.held > self._limit:
            self._make_room(hold)

    def _make_room(self, newest: Hold) -> None:
        for oldest in list(islice(self._holds, _ASKED_AT_ONCE)):
            if oldest is newest:
                continue
            del self._holds[oldest]
            if oldest.give_up():
                self.held -= oldest.size
                oldest.size, oldest.is_given_up = 0, True
            else:
                self._holds[oldest] = None  # behind those that were not asked yet
            if self.held <= self._limit:
                return
        self.change(newest, 0)
        raise crowded_out()


class Hold:
    """The bytes that one request holds. `give_up`: ends it if it waits for its client, and says whether it did."""

    __slots__ = ("give_up", "is_given_up", "room", "size")

    def __init__(self, room: Room, give_up: Callable[[], bool]) -> None:
        self.room = room
        self.give_up = give_up
        self.is_given_up = False
        self.size = 0

    def set(self, size: int) -> None:
        """Hold so many bytes from now on.

        Raises:
            Overloaded: there is no room, or a newer request needed it.
        """
        if size and self.is_given_up:
            raise crowded_out()
        self.room.change(self, size)


def crowded_out() -> Overloaded:
    """Return the error of a request that the process has no room for."""
    return Overloaded("the process has its hands full of other requests: send this one again", retry_after_s=1.0)


class BodyLimit:
    """Answers 413 as soon as a body is over the limit, whatever length it declared, and 503 if there is no room."""

    def __init__(self, app: ASGIApp, room: Room, limit: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._room = room
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, self._room, self._limit)
        scope[HOLD] = body.hold
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.hold.set(0)


class _Body:
    """A request's body while it arrives. It holds its bytes until the request is answered."""

    def __init__(self, scope: Scope, receive: Receive, room: Room, limit: int) -> None:
        self.hold = Hold(room, self._give_up)
        self._declared = _declared_length(scope)
        self._receive = receive
        self._limit = limit
        self._received = 0
        self._is_whole = False
        self._wait: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """Return the next message of the server's.

        Raises:
            HTTPException: 413, the body is over the limit.
            Overloaded: there is no room for it, or newer bodies needed its room.
        """
        if self._is_whole:  # what comes now says only that the client has gone
            return await self._receive()
        self._check(self._declared)  # before the client is told to go on, and before there is room for any of it
        message = await self._next_piece()
        size = len(message.get("body", b""))
        self._received += size
        self._check(self._received)
        self._is_whole = not message.get("more_body", False)
        self.hold.set(self.hold.size + size)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            # the rest is not read: a client must not send its next request behind it
            raise HTTPException(413, f"the body is over {self._limit} bytes: send it in parts", {"Connection": "close"})

    async def _next_piece(self) -> Message:
        if self.hold.is_given_up:
            raise crowded_out()
        try:
            async with asyncio.timeout(None) as self._wait:
                return await self._receive()
        except TimeoutError:
            raise crowded_out() from None
        finally:
            self._wait = None

    def _give_up(self) -> bool:
        if self._is_whole:
            return False
        if self._wait is not None:
            self._wait.reschedule(asyncio.get_running_loop().time())
        return True


def _declared_length(scope: Scope) -> int:
    """Return the length that a request says its body has; 0 when it does not say."""
    # servers refuse what is no number
    return next((int(value) for name, value in scope.get("headers", ()) if name == b"content-length"), 0)
