"""The bounds of the server's connections: requests are read within limits, and slow clients are cut off.

They subclass uvicorn's connection; `app/api/connections.py` subclasses them to answer faster. httptools limits neither
a head nor the bytes that it parses in one call. So this module limits heads, trailers and the framing of chunks, parses
a few requests at a time, and counts all bytes that wait for the parser or the application.

No module but these two uses private parts of uvicorn. `tests/unit/api/test_uvicorn.py` fails if a release changes them.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sized
from typing import Any

import httptools
from fastapi import Response
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.access import OPEN_PATHS
from app.api.drain import has_unread_bytes
from app.api.limits import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    ClientPace,
    HeldBytes,
    is_head_too_large,
    respond_to_large_head,
    server_full,
)
from app.api.problems import respond_to_error, respond_to_other_protocol, respond_to_status
from app.api.requests import WATCH_AFTER_S, under_root
from inference.errors import Overloaded

#: bytes to parse at once; cuts longer pieces, so that requests which arrive together do not all begin at once
STEP_BYTES = 4 * 1024
#: time to parse one client's bytes before other clients have their turn
TURN_S = 0.001
#: bytes that a refused client may still send while it reads the refusal
FAREWELL_BYTES = 1024 * 1024
#: memory of a header beside its text, and of a request that waits for earlier ones on its connection
_HEADER_BYTES = 150
_WAITING_REQUEST_BYTES = 4 * 1024

#: time for the first request of a connection that is new when the service stops
FIRST_REQUEST_S = 0.5

#: interval of the checks for slow clients
CHECK_EVERY_S = 1.0

#: the parser raises these when it stops before the end of its input
_STOPS = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class _Flow(FlowControl):
    """uvicorn's flow control, which calls `go_on` to parse the bytes at hand before it reads more from the client.

    `waiting`: requests that wait for an earlier one. While there are any, this neither parses nor reads: the request
    that is being answered already has all of its body.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized, go_on: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self._go_on = go_on

    def resume_reading(self) -> None:
        """Read on after all bytes at hand are parsed."""
        if self.read_paused and not self._waiting:
            self.read_paused = False
            if not self._go_on():
                self._transport.resume_reading()


class _DeafParser:
    """Replaces the parser after the client was refused."""

    def feed_data(self, data: bytes | memoryview) -> None:
        """Throw the bytes away."""


class BoundedConnection(HttpToolsProtocol):
    """One client's connection to an `Application`, with limits for what the client sends and for its pace.

    It ignores an offer to upgrade (RFC 9110, 7.8). It cuts off a client that sends a head or body too slowly, or takes
    its answer too slowly. A client that closes its sending half still gets its answer.
    """

    # Python reads attributes more slowly if a class has over thirty, and uvicorn's has nearly as many
    __slots__ = (
        "_answering", "_body_bytes", "_body_bytes_before", "_held", "_is_refused", "_is_surplus", "_next_check",
        "_pace", "_taken", "_thrown_away", "_unfinished", "_unread", "_unsent",
    )  # fmt: skip

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = b""  # uvicorn has none before the first request
        #: bytes that are not parsed yet; the connection reads no more before they are
        self._unread: memoryview | bytes = b""
        #: bytes parsed since the last whole head or the last piece of a body
        self._unfinished = 0
        #: bytes of bodies that the client sent, in all and at the last count
        self._body_bytes = 0
        self._body_bytes_before = 0
        self._held: HeldBytes | None = None
        self._is_refused = False
        #: the connection limit was reached when this one opened
        self._is_surplus = False
        #: the request that is being answered; uvicorn only knows the last one that it parsed
        self._answering: RequestResponseCycle | None = None
        #: bytes of answers that had to wait and that the client took, and bytes that still wait
        self._taken = self._unsent = 0
        #: bytes of bodies that arrived after their requests were answered
        self._thrown_away = 0

    # --- opening and closing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to serve a client."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline, self._has_more_to_parse)
        self._next_check = self.loop.call_later(CHECK_EVERY_S, self._check_client)
        self._pace = ClientPace(self.loop.time(), self.timeout_keep_alive)
        limit = self.app.connection_limit
        if len(self.connections) > limit.most:
            self._is_surplus = not limit.make_place(self.connections, self)
            if self._is_surplus and limit.is_over_all(len(self.connections)):
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for a client that is gone."""
        self._next_check.cancel()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._unread = b""
        if self._held is not None:
            self._held.set(0)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End the connection because the service stops, after the answers to all requests that have arrived."""
        self.app.drain.is_closing = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None:  # its first request comes any moment
            self.loop.call_later(FIRST_REQUEST_S, self._hang_up_if_idle)
        else:
            self._hang_up_if_idle()

    def _hang_up_if_idle(self) -> None:
        is_in_request = self.scope is not None and self._awaits()[0] in ("head", "body", "nothing")
        if self.transport.is_closing() or is_in_request:
            return
        if not has_unread_bytes(self.transport.get_extra_info("socket").fileno()):
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None
        """Keep a connection whose client has closed its sending half until the client has its answer."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        if self.scope["http_version"] != "1.0":  # HTTP/1.0 has no interim answers
            self.loop.call_later(WATCH_AFTER_S, self._check_half_closed, b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _check_half_closed(self, interim: bytes) -> None:
        """Hang up if the client is gone. A closed half looks the same until the server sends something."""
        if self.transport.is_closing() or self.cycle.response_started:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if not self.pipeline:  # otherwise an earlier answer may be half written
            self.transport.write(interim)
            interim = b""
        self.loop.call_later(WATCH_AFTER_S, self._check_half_closed, interim)

    # --- parsing

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the client."""
        cycle = self.cycle
        if len(data) > STEP_BYTES:
            self._unread = memoryview(bytes(self._unread) + data) if self._unread else memoryview(data)
            self._parse_unread()
            return
        try:
            self.parser.feed_data(data)
        except _STOPS as error:
            self._parse_rest(data, error)
        if self.cycle is cycle:
            self._check_size(len(data))
        elif self._unfinished:
            self._unfinished = 0
            self._count_held()

    def _parse_unread(self) -> None:
        """Parse the bytes at hand until a request has to wait or other clients have their turn."""
        end = time.monotonic() + TURN_S
        while self._unread and not self.flow.read_paused and not self.transport.is_closing():
            cycle, step, self._unread = self.cycle, self._unread[:STEP_BYTES], self._unread[STEP_BYTES:]
            self._parse(step)
            if self.cycle is not cycle:
                self._unfinished = 0
            self._check_size(len(step) if self.cycle is cycle else 0)
            if time.monotonic() > end:
                break
        if self._unread and not self.transport.is_closing():
            self.transport.pause_reading()
            if not self.flow.read_paused:
                self.loop.call_soon(self._parse_unread)
        elif not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _has_more_to_parse(self) -> bool:
        if self._unread:
            self.loop.call_soon(self._parse_unread)
        return bool(self._unread)

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except _STOPS as error:
            self._parse_rest(data, error)

    def _parse_rest(self, data: bytes | memoryview, stopped: Exception) -> None:
        """Parse on from where the parser stopped, or refuse the client."""
        if not isinstance(stopped, httptools.HttpParserUpgrade):
            self.logger.warning("Invalid HTTP request received: %s", stopped)
            self._refuse(self._not_http(stopped))
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(respond_to_status(501, "CONNECT is for proxies, and this is none", self._path()))
        else:
            # the parser stops after the head (https://github.com/Kludex/uvicorn/issues/2722): parse the request again
            # without its offer, then go on
            offset: int = stopped.args[0]
            self._parse(self._head_without_offer() + bytes(data[offset:]))

    def _should_upgrade(self) -> bool:
        # uvicorn asks only about requests with an offer, and then leaves the request alone
        return True

    def _head_without_offer(self) -> bytes:
        start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"http2-settings")]
        return b"\r\n".join([start, *lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._body_bytes += len(body)
        super().on_body(body)
        if self.cycle.response_complete:  # nobody reads the rest
            self._thrown_away += len(body)
            if self._thrown_away > MAX_BODY_BYTES:
                self.transport.abort()

    def _check_size(self, parsed: int) -> None:
        """Limit the parsed bytes that make neither a request nor a piece of a body."""
        if self._body_bytes != self._body_bytes_before:
            self._body_bytes_before = self._body_bytes
            self._unfinished = 0
        else:
            self._unfinished += parsed
        if self._is_refused:
            if self._unfinished > FAREWELL_BYTES:
                self.transport.abort()
        elif self._unfinished > MAX_HEAD_BYTES or len(self.headers or ()) > MAX_HEADERS:
            self._refuse(respond_to_large_head(self.url if self._is_in_head() else b"", self._path()))
        else:
            self._count_held()

    def _count_held(self) -> None:
        """Count the bytes that the connection holds, if they are more than a few."""
        held = self._unfinished + len(self._unread) + len(self.pipeline) * _WAITING_REQUEST_BYTES
        held += self.transport.get_write_buffer_size()
        if self.cycle is not None and not self.cycle.response_complete:
            held += len(self.cycle.body)
        if held > STEP_BYTES:
            held += len(self.headers or ()) * _HEADER_BYTES
        elif self._held is None:
            return
        else:
            held = 0
        if self._held is None:
            self._held = HeldBytes(self.app.memory, self._give_up)
        try:
            self._held.set(held)
        except Overloaded as error:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            self._refuse(respond_to_error(error, self._path()))

    def _is_in_head(self) -> bool:
        return self.scope is None or "method" not in self.scope

    def _path(self) -> str:
        # missing before the end of the head
        return "" if self.scope is None else self.scope.get("path", "")

    # --- answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request. uvicorn calls it after the earlier request on this connection is answered."""
        self._answering = cycle
        scope: Any = cycle.scope
        if self.app.drain.is_closing and not (self.pipeline or self._unread):
            cycle.keep_alive = False
        elif scope["http_version"] == "1.0" and _asks_to_keep_alive(scope):
            cycle.keep_alive = True
            cycle.default_headers = [*cycle.default_headers, (b"connection", b"keep-alive")]
        if app.shown_under:
            under_root(scope, app.shown_under)
        if (self._unfinished or self._is_surplus) and (refusal := self._refusal_of(scope)):
            cycle.keep_alive = False
            refusal.headers["connection"] = "close"
            self._answer_in_task(cycle, refusal)
        else:
            self._answer(cycle)

    def _answer(self, cycle: RequestResponseCycle) -> None:
        """Answer a request that is within the limits."""
        self._answer_in_task(cycle, self.app)

    def _answer_in_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Have an ASGI application answer a request, as uvicorn does."""
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Begin the next request on the connection, if it has already arrived."""
        # like uvicorn's, but without a timer for each answer: `_check_client` ends idle connections
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._held is not None:
            self._count_held()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        self.flow.resume_reading()

    # --- slow clients

    def _check_client(self) -> None:
        """Cut the client off if it is late; check again soon."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        self._taken += max(0, self._unsent - unsent)
        self._unsent = unsent
        if unsent or self._held is not None:
            self._count_held()
        what, about = self._awaits()
        if self._pace.is_late(what, about, self._taken + self._body_bytes, now):
            self._cut_off(what)
        self._next_check = self.loop.call_later(CHECK_EVERY_S, self._check_client)

    def _awaits(self) -> tuple[str, object]:
        """Return the client's next step ("nothing" while it waits for us), and the scope of its request."""
        cycle = self.cycle
        about = None if cycle is None else cycle.scope
        if self.transport.get_write_buffer_size():
            return ("reading", about)
        if self._is_refused and (cycle is None or cycle.response_complete or cycle.disconnected):
            return ("farewell", about)
        if cycle is None or cycle.response_complete:
            return ("head", self.scope) if self._is_in_head() else ("request", about)
        # the server itself may hold up a body that nobody has read yet
        held_up = cycle.body or cycle.waiting_for_100_continue or self.pipeline or self._unread
        return ("body" if cycle.more_body and not held_up else "nothing", about)

    def _cut_off(self, what: str) -> None:
        if what in ("reading", "farewell"):
            self.transport.abort()
        elif what == "request" or self.scope is None:  # the client asked nothing
            self.transport.close()
        else:
            detail = f"the {what} of the request took too long to arrive: send it faster, or less"
            self._refuse(respond_to_status(408, detail, self._path()))

    def silent_since(self) -> tuple[bool, float] | None:
        """Return whether the client ever had an answer, and since when it is silent; None while it waits for us."""
        what, about = self._awaits()
        since = self._pace.since(what, about, self._taken + self._body_bytes, self.loop.time())
        return None if what == "nothing" else (self.cycle is not None and self.cycle.response_complete, since)

    def make_way(self) -> None:
        """End the connection because there are too many."""
        self.connections.discard(self)  # count it no more, though the descriptor closes in the next turn
        self._give_up()
        self.transport.close()

    def _give_up(self) -> bool:
        """End the current request if it waits for its client; return whether it did."""
        what, _ = self._awaits()
        if what == "reading":
            self.transport.abort()
            return True
        if what not in ("head", "body") or self.scope is None:
            return False
        self._refuse(respond_to_error(server_full(), self._path()))
        return True

    # --- refusals, without the application

    def _refusal_of(self, scope: Any) -> Response | None:
        """Return the refusal of a request that the application must not see; None to let it pass."""
        is_surplus = self._is_surplus and len(self.connections) > self.app.connection_limit.most
        if is_surplus and not scope["path"].startswith(OPEN_PATHS):
            return respond_to_error(server_full(), scope["path"])
        if self._unfinished and is_head_too_large(scope):
            return respond_to_large_head(scope["raw_path"], self._path())
        return None

    def _not_http(self, error: Exception) -> Response:
        if self._is_in_head() or not isinstance(error, httptools.HttpParserCallbackError):
            return respond_to_other_protocol(str(error), self._path())
        if len(self.url) > MAX_HEAD_BYTES // 2:  # uvicorn parses it with http_parser, which has 16 bits for lengths
            return respond_to_large_head(self.url, self._path())
        return respond_to_status(400, "this is no HTTP/1.1 request: its URL has no path")

    def _refuse(self, response: Response) -> None:
        """Answer without the application, and hang up after all earlier requests are answered."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._unfinished, self._unread = 0, b""
        self.parser = _DeafParser()  # type: ignore[assignment]  # it only needs `feed_data` from here on
        if self._held is not None:
            self._held.set(0)
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


def _asks_to_keep_alive(scope: Any) -> bool:
    return any(name == b"connection" and b"keep-alive" in value.lower() for name, value in scope["headers"])
