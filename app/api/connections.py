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

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api import hot_path
from app.api.disconnects import WATCH_AFTER_S
from app.api.naming import is_named
from app.api.problems import respond_to_status
from app.api.routing import under_root

#: how the parser's sentences begin → what to do about it
_FIXES = {
    "Invalid char in url": "percent-encode what is not ASCII in a path or query",
    "Expected HTTP/": "a blank in a path is written %20",
    "Invalid method": "this port speaks plain HTTP/1.1, without TLS",
    "Pause on PRI": "this port speaks HTTP/1.1, not HTTP/2",
}
_NONE: list[tuple[bytes, bytes]] = []
_KEEP_ALIVE = (b"connection", b"keep-alive")

#: how often a connection looks whether its client is late
LOOK_EVERY_S = 1.0
#: from the opening of a connection to the end of the first head, and from a head's first byte to its end
HEAD_TIMEOUT_S = 10.0
#: for a body, and a second more for each so many bytes of it that have come
BODY_TIMEOUT_S = 10.0
BODY_BYTES_PER_S = 32 * 1024


class Connection(HttpToolsProtocol):
    """One client's connection to an `Application`.

    An offer to upgrade is ignored (RFC 9110, 7.8). A client that is slow to send a head or a body is cut off, one that
    closes its sending half still gets its answer.
    """

    #: the server's own headers (it makes a new list each second), and the start of an answer with them
    _own_headers = _NONE
    _head = b""
    #: what the client was late with at the last look, and since when; how much body had come by then
    _awaited: tuple[str, object] = ("head", None)
    _awaited_since = 0.0
    _body_bytes_before = 0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to serve a client."""
        super().connection_made(transport)
        self._next_look = self.loop.call_later(LOOK_EVERY_S, self._look)
        self._awaited_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is done for a client that is gone."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client's."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # the parser stops after the head (https://github.com/Kludex/uvicorn/issues/2722): read the request
                # again as one without an offer, then go on
                data = self._head_without_offer() + data[offer.args[0] :]
            except httptools.HttpParserError as error:
                self.logger.warning("Invalid HTTP request received: %s", error)
                self._refuse(400, f"this is no HTTP/1.1 request: {_in_our_words(error)}")
                return
            if self.parser.get_method() == b"CONNECT":
                self._refuse(501, "CONNECT is for proxies, and this is none")
                return

    def _should_upgrade(self) -> bool:
        # asked only about requests with an offer: uvicorn then leaves the request alone
        return True

    def _head_without_offer(self) -> bytes:
        start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"http2-settings")]
        return b"\r\n".join([start, *lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request; uvicorn calls it once the one before it on this connection is answered."""
        scope: Any = cycle.scope
        if scope["http_version"] == "1.0" and _asks_to_keep_alive(scope):
            cycle.keep_alive = True
            cycle.default_headers = [*cycle.default_headers, _KEEP_ALIVE]
        # uvicorn puts another application in when it refuses
        if app is self.app and app.shown_under:
            under_root(scope, app.shown_under)
        if app is not self.app or cycle.waiting_for_100_continue or not hot_path.is_hot(scope) or is_named(scope):
            super()._start_asgi_task(cycle, app)
            return
        scope[hot_path.BEGUN] = request = app.hot_request(scope, partial(self._looked_up, cycle))
        request.begin()

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
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

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
        awaited, now = self._awaits(), self.loop.time()
        if awaited[0] != self._awaited[0] or awaited[1] is not self._awaited[1]:
            self._awaited, self._awaited_since, self._body_bytes_before = awaited, now, self._body_bytes
        elif now - self._awaited_since > self._may_take_s(awaited[0]):
            self._cut_off(awaited[0])
            return
        self._next_look = self.loop.call_later(LOOK_EVERY_S, self._look)

    def _awaits(self) -> tuple[str, object]:
        """Return what the client has to send next, and of which request; "nothing" while it waits for us."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            in_head = self.scope is None or "method" not in self.scope
            return ("head", self.scope) if in_head else ("request", cycle)
        # a body that nobody has taken yet may be held up by us
        held_up = cycle.body or cycle.waiting_for_100_continue or self.pipeline
        return ("body" if cycle.more_body and not held_up else "nothing", cycle)

    def _may_take_s(self, what: str) -> float:
        if what == "body":
            return BODY_TIMEOUT_S + (self._body_bytes - self._body_bytes_before) / BODY_BYTES_PER_S
        return {"head": HEAD_TIMEOUT_S, "request": self.timeout_keep_alive}.get(what, math.inf)

    def _cut_off(self, what: str) -> None:
        if what == "request" or self.scope is None:  # nothing was asked
            self.transport.close()
            return
        self._refuse(408, f"the {what} of the request took too long to arrive: send it faster, or less")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what no application can be asked about, and hang up once all that came before it is answered."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                self.transport.pause_reading()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        response = respond_to_status(status, detail, (self.scope or {}).get("path", ""))
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, bytes(response.body)))
        self.transport.close()


def _in_our_words(error: httptools.HttpParserError) -> str:
    said = str(error)
    return "; ".join([said, *(fix for start, fix in _FIXES.items() if said.startswith(start))])


def _asks_to_keep_alive(scope: Any) -> bool:
    return any(name == b"connection" and b"keep-alive" in value.lower() for name, value in scope["headers"])
