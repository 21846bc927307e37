"""The server's connections: uvicorn's, with a short way for hits and with manners for every client.

uvicorn starts a task for each request, and the task's messages to and fro are checked and written one by one. That
costs more than the rest of a hit. Here a hit is answered with one write when its look-up is over; whatever is not a
hit goes uvicorn's way from there. Parsing, pipelining and shutdown are uvicorn's throughout.
"""

from __future__ import annotations

import asyncio
import math
import socket
from functools import partial
from typing import Any

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.api import hot_path
from app.api.access import OPEN_PATHS
from app.api.disconnects import WATCH_AFTER_S
from app.api.limits import MAX_BODY_BYTES, Room, crowded_out
from app.api.parsing import BoundedParsing
from app.api.problems import respond_to_error, respond_to_status
from app.api.routing import under_root

_NONE: list[tuple[bytes, bytes]] = []
_KEEP_ALIVE = (b"connection", b"keep-alive")

#: how often a connection looks whether its client is late
LOOK_EVERY_S = 1.0
#: from the opening of a connection to the end of the first head, and from a head's first byte to its end
HEAD_TIMEOUT_S = 10.0
#: for a body, and a second more for each so many bytes of it that have come; the same for an answer to be taken
BODY_TIMEOUT_S = 10.0
BODY_BYTES_PER_S = 32 * 1024
#: between two bytes of a body, or of an answer that the client takes
PAUSE_S = 10.0
#: for a client that was refused to read why
FAREWELL_S = 2.0


class Connection(BoundedParsing):
    """One client's connection to an `Application`.

    An offer to upgrade is ignored (RFC 9110, 7.8). A client that is slow to send a head or a body, or to take its
    answer, is cut off; one that closes its sending half still gets its answer.
    """

    __slots__ = (
        "_answering", "_awaited", "_awaited_since", "_head", "_is_surplus", "_moved", "_moved_at", "_moved_before",
        "_next_look", "_own_headers", "_taken", "_thrown_away", "_unsent",
    )  # fmt: skip

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: the server's own headers (it makes a new list each second), and the start of an answer with them
        self._own_headers = _NONE
        self._head = b""
        #: the request that is being answered; uvicorn knows only the last one that was parsed
        self._answering: RequestResponseCycle | None = None
        #: what the client has to do, by the last look, and since when
        self._awaited: tuple[str, object] = ("head", None)
        self._awaited_since = 0.0
        #: what the client has sent of bodies and taken of answers: in all, and at the beginning of what is awaited
        self._moved = 0
        self._moved_before = 0
        self._moved_at = 0.0
        #: what it has taken of answers that had to wait for it, and what still waits
        self._taken = 0
        self._unsent = 0
        #: of bodies of requests that were answered before all of them was there
        self._thrown_away = 0
        #: found all places taken
        self._is_surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to serve a client."""
        super().connection_made(transport)
        self._next_look = self.loop.call_later(LOOK_EVERY_S, self._look)
        self._awaited_since = self._moved_at = self.loop.time()
        if len(self.connections) > self.app.crowd.most:
            crowd = self.app.crowd
            self._is_surplus = not crowd.make_place(self.connections, self)
            if self._is_surplus and crowd.is_over_all(len(self.connections)):
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is done for a client that is gone."""
        self._next_look.cancel()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        super().on_body(body)
        if self.cycle.response_complete:  # it is answered already: nobody reads the rest
            self._thrown_away += len(body)
            if self._thrown_away > MAX_BODY_BYTES:
                self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request; uvicorn calls it once the one before it on this connection is answered."""
        self._answering = cycle
        scope: Any = cycle.scope
        if scope["http_version"] == "1.0" and _asks_to_keep_alive(scope):
            cycle.keep_alive = True
            cycle.default_headers = [*cycle.default_headers, _KEEP_ALIVE]
        if app.shown_under:
            under_root(scope, app.shown_under)
        if (self._unfinished or self._is_surplus) and (refusal := self._refusal_of(scope)):
            cycle.keep_alive = False
            refusal.headers["connection"] = "close"
            super()._start_asgi_task(cycle, refusal)  # type: ignore[arg-type]  # their types of ASGI differ in names
            return
        if (
            cycle.waiting_for_100_continue
            or not hot_path.is_hot(scope)
            or _has_any(scope["headers"], app.told_apart_by)
        ):
            super()._start_asgi_task(cycle, app)
            return
        scope[hot_path.BEGUN] = request = app.hot_request(scope, partial(self._looked_up, cycle))
        request.begin()

    def _refusal_of(self, scope: Any) -> Response | None:
        """Return the answer to a request that the application is not asked about; None: it is."""
        is_crowded = self._is_surplus and len(self.connections) > self.app.crowd.most
        if is_crowded and not scope["path"].startswith(OPEN_PATHS):
            return respond_to_error(crowded_out(), scope["path"])
        return self._too_large_head(scope) if self._unfinished else None

    def _looked_up(self, cycle: RequestResponseCycle) -> None:
        scope: Any = cycle.scope
        request = scope.pop(hot_path.BEGUN)
        body = request.body
        if cycle.disconnected:
            return
        if body is None or cycle.flow.write_paused:
            scope[hot_path.BEGUN] = request
            super()._start_asgi_task(cycle, self.app)
            return
        if cycle.default_headers is not self._own_headers:
            self._own_headers = cycle.default_headers
            lines = [b"%b: %b\r\n" % pair for pair in (*self._own_headers, hot_path.CONTENT_TYPE)]
            self._head = b"HTTP/1.1 200 OK\r\n" + b"".join(lines)
        close = b"" if cycle.keep_alive else b"connection: close\r\n"
        cycle.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (self._head, len(body), close, body))
        # what uvicorn's `send` does after the last message
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        """Begin the next request of the connection, if it is there already."""
        # as uvicorn does, but without a timer for each answer: `_look` ends idle connections
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._hold is not None:
            self._keep_count()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        self.flow.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None
        """Keep a connection whose client has closed its sending half until the client has its answer."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        if self.scope["http_version"] != "1.0":  # which knows no interim answers
            self.loop.call_later(WATCH_AFTER_S, self._ask_who_is_there, b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _ask_who_is_there(self, interim: bytes) -> None:
        """Hang up if the client has gone altogether, which looks like a closed half until something is sent to it."""
        if self.transport.is_closing() or self.cycle.response_started:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if not self.pipeline:  # else an earlier answer may be half written
            self.transport.write(interim)
            interim = b""
        self.loop.call_later(WATCH_AFTER_S, self._ask_who_is_there, interim)

    def _look(self) -> None:
        """Cut the client off if it is late; look again soon."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        self._taken += max(0, self._unsent - unsent)
        self._unsent = unsent
        if unsent or self._hold is not None:
            self._keep_count()
        if self._taken + self._body_bytes != self._moved:
            self._moved, self._moved_at = self._taken + self._body_bytes, now
        what, since = self._awaits_since()
        if now - since > self._may_take_s(what) or (what in ("body", "reading") and now - self._moved_at > PAUSE_S):
            self._cut_off(what)
        self._next_look = self.loop.call_later(LOOK_EVERY_S, self._look)

    def _awaits_since(self) -> tuple[str, float]:
        """Return what the client has to do next, and since when; "nothing" while it waits for us."""
        awaited = self._awaits()
        if awaited[0] != self._awaited[0] or awaited[1] is not self._awaited[1]:
            self._awaited, self._awaited_since = awaited, self.loop.time()
            self._moved_before, self._moved_at = self._body_bytes + self._taken, self._awaited_since
        return awaited[0], self._awaited_since

    def _awaits(self) -> tuple[str, object]:
        """Return what the client has to do next, and about which request."""
        cycle = self.cycle
        if self.transport.get_write_buffer_size():
            return ("reading", cycle)
        if self._is_refused and (cycle is None or cycle.response_complete or cycle.disconnected):
            return ("farewell", cycle)
        if cycle is None or cycle.response_complete:
            return ("head", self.scope) if self._is_in_head() else ("request", cycle)
        # a body that nobody has taken yet may be held up by us
        held_up = cycle.body or cycle.waiting_for_100_continue or self.pipeline or self._unread
        return ("body" if cycle.more_body and not held_up else "nothing", cycle)

    def _may_take_s(self, what: str) -> float:
        if what in ("body", "reading"):
            return BODY_TIMEOUT_S + (self._body_bytes + self._taken - self._moved_before) / BODY_BYTES_PER_S
        limits = {"head": HEAD_TIMEOUT_S, "request": self.timeout_keep_alive, "farewell": FAREWELL_S}
        return limits.get(what, math.inf)

    def _cut_off(self, what: str) -> None:
        if what in ("reading", "farewell"):
            self.transport.abort()
        elif what == "request" or self.scope is None:  # nothing was asked
            self.transport.close()
        else:
            detail = f"the {what} of the request took too long to arrive: send it faster, or less"
            self._refuse(respond_to_status(408, detail, self._path()))

    def silent_since(self) -> tuple[bool, float] | None:
        """Return whether the client ever had an answer, and since when it has to do something; None: it waits."""
        what, since = self._awaits_since()
        return None if what == "nothing" else (self.cycle is not None and self.cycle.response_complete, since)

    def make_way(self) -> None:
        """End the connection, for there are too many."""
        self.connections.discard(self)  # counted no more, though the descriptor is closed in the next turn
        self._give_up()
        self.transport.close()

    def _room(self) -> Room:
        room: Room = self.app.room
        return room

    def _give_up(self) -> bool:
        what, _ = self._awaits_since()
        if what == "reading":
            self.transport.abort()
            return True
        if what not in ("head", "body") or self.scope is None:
            return False
        self._refuse(respond_to_error(crowded_out(), self._path()))
        return True

    def _refuse(self, response: Response) -> None:
        """Answer what no application is asked about, and hang up once all that came before it is answered."""
        if self._is_refused or self.transport.is_closing():
            return
        self._listen_no_more()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                self.flow.pause_reading()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], lines, bytes(response.body)))
        # a client that still sends would lose the answer if we closed at once (RFC 9112, 9.6)
        self.transport.write_eof()


def _has_any(headers: list[tuple[bytes, bytes]], names: frozenset[bytes]) -> bool:
    for name, _ in headers:  # noqa: SIM110 - `any` of a generator takes twice the time
        if name in names:
            return True
    return False


def _asks_to_keep_alive(scope: Any) -> bool:
    return any(name == b"connection" and b"keep-alive" in value.lower() for name, value in scope["headers"])
