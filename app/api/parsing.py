"""Parses what clients send in bounded steps: the part of a connection that works before any application is asked.

httptools limits neither a head nor what it parses in one call. Here a head, trailers and the framing of chunks are
bounded, a client that sends many requests at once has them parsed a few at a time, and all that waits to be parsed or
read by the application is counted.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Sized
from typing import Any

import httptools
from fastapi import Response
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.limits import Hold, Room
from app.api.problems import respond_to_error, respond_to_status
from inference.errors import Overloaded

#: of a request line and headers together; the same of what comes between two bytes of a body, and of trailers
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 1000
#: parsed at once: longer pieces are cut, so that requests which are sent together are not all made at once
STEP_BYTES = 4 * 1024
#: how long one client's bytes are parsed before others have their turn
TURN_S = 0.001
#: what a client may still send after it was refused, while it reads why
FAREWELL_BYTES = 1024 * 1024
#: why the parser stops before the end of what it is given
_STOPS = (httptools.HttpParserError, httptools.HttpParserUpgrade)
#: how the parser's sentences begin → what to do about it
_FIXES = {
    "Invalid char in url": "percent-encode what is not ASCII in a path or query",
    "Expected HTTP/": "a blank in a path is written %20",
    "Invalid method": "this port speaks plain HTTP/1.1, without TLS",
    "Pause on PRI": "this port speaks HTTP/1.1, not HTTP/2",
}
#: in memory: a header beside its text, and a request that waits for those before it on its connection
_HEADER_BYTES = 150
_WAITING_REQUEST_BYTES = 4 * 1024


class _Flow(FlowControl):
    """uvicorn's flow control; before more is read of a client, `go_on` parses what has come already.

    `waiting`: requests that wait for the one before them. While there are any, nothing is parsed or read: the one that
    is answered has all of its body.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized, go_on: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self._go_on = go_on

    def resume_reading(self) -> None:
        """Read on, once all that has come is parsed."""
        if self.read_paused and not self._waiting:
            self.read_paused = False
            if not self._go_on():
                self._transport.resume_reading()


class _Deaf:
    """Stands where the parser was, and parses nothing: the client was refused."""

    def feed_data(self, data: bytes | memoryview) -> None:
        """Throw away what a client sends."""


class BoundedParsing(HttpToolsProtocol):
    """One client's connection, as far as it is read."""

    # Python reads the attributes of a class of over thirty more slowly, and uvicorn has nearly as many
    __slots__ = ("_body_bytes", "_body_bytes_before", "_hold", "_is_refused", "_unfinished", "_unread")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = b""  # uvicorn has none before the first request
        #: what came and is not parsed yet; nothing more is read before it is
        self._unread: memoryview | bytes = b""
        #: what was parsed since the last head was whole or the last piece of a body came
        self._unfinished = 0
        self._body_bytes = 0
        self._body_bytes_before = 0
        self._hold: Hold | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to read a client."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline, self._has_more_to_parse)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what the client sent."""
        self._unread = b""
        if self._hold is not None:
            self._hold.set(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client's."""
        if len(data) > STEP_BYTES:
            self._unread = memoryview(bytes(self._unread) + data) if self._unread else memoryview(data)
            self._parse_unread()
            return
        cycle = self.cycle
        try:
            self.parser.feed_data(data)
        except _STOPS as error:
            self._parse_rest(data, error)
        if self.cycle is cycle:
            self._weigh(len(data))
        elif self._unfinished:
            self._unfinished = 0
            self._keep_count()

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except _STOPS as error:
            self._parse_rest(data, error)

    def _parse_rest(self, data: bytes | memoryview, stopped: Exception) -> None:
        """Parse on where the parser stopped, or refuse the client."""
        if not isinstance(stopped, httptools.HttpParserUpgrade):
            self.logger.warning("Invalid HTTP request received: %s", stopped)
            self._refuse(self._not_http(stopped))
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(respond_to_status(501, "CONNECT is for proxies, and this is none", self._path()))
        else:
            # the parser stops after the head (https://github.com/Kludex/uvicorn/issues/2722): read the request again
            # as one without an offer, then go on
            offset: int = stopped.args[0]
            self._parse(self._head_without_offer() + bytes(data[offset:]))

    def _not_http(self, error: Exception) -> Response:
        if self._is_in_head() or not isinstance(error, httptools.HttpParserCallbackError):
            return respond_to_status(400, f"this is no HTTP/1.1 request: {_in_our_words(error)}", self._path())
        if len(self.url) > MAX_HEAD_BYTES // 2:  # uvicorn asks for its parts, and http_parser has 16 bits for them
            return self._too_large(self.url)
        return respond_to_status(400, "this is no HTTP/1.1 request: its URL has no path")

    def _should_upgrade(self) -> bool:
        # asked only about requests with an offer: uvicorn then leaves the request alone
        return True

    def _head_without_offer(self) -> bytes:
        start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"http2-settings")]
        return b"\r\n".join([start, *lines, b"", b""])

    def _parse_unread(self) -> None:
        """Parse what has come, until a request has to wait or others want their turn."""
        end = time.monotonic() + TURN_S
        while self._unread and not self.flow.read_paused and not self.transport.is_closing():
            cycle, step, self._unread = self.cycle, self._unread[:STEP_BYTES], self._unread[STEP_BYTES:]
            self._parse(step)
            if self.cycle is not cycle:
                self._unfinished = 0
            self._weigh(len(step) if self.cycle is cycle else 0)
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

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def _weigh(self, parsed: int) -> None:
        """Bound what was parsed without a request or a piece of a body coming of it."""
        if self._body_bytes != self._body_bytes_before:
            self._body_bytes_before = self._body_bytes
            self._unfinished = 0
        else:
            self._unfinished += parsed
        if self._is_refused:
            if self._unfinished > FAREWELL_BYTES:
                self.transport.abort()
        elif self._unfinished > MAX_HEAD_BYTES or len(self.headers or ()) > MAX_HEADERS:
            self._refuse(self._too_large(self.url if self._is_in_head() else b""))
        else:
            self._keep_count()

    def _keep_count(self) -> None:
        """Count what the connection holds of the room for all of them, if it is worth it."""
        held = self._unfinished + len(self._unread) + len(self.pipeline) * _WAITING_REQUEST_BYTES
        held += self.transport.get_write_buffer_size()
        if self.cycle is not None and not self.cycle.response_complete:
            held += len(self.cycle.body)
        if held > STEP_BYTES:
            held += len(self.headers or ()) * _HEADER_BYTES
        elif self._hold is None:
            return
        else:
            held = 0
        if self._hold is None:
            self._hold = Hold(self._room(), self._give_up)
        try:
            self._hold.set(held)
        except Overloaded as error:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            self._refuse(respond_to_error(error, self._path()))

    def _too_large_head(self, scope: Any) -> Response | None:
        """Return what is answered to a head that is whole and too large; None: it is not."""
        lines = scope["headers"]
        url = len(scope["raw_path"]) + len(scope["query_string"])
        size = url + sum(len(name) + len(value) + len(b": \r\n") for name, value in lines)
        return self._too_large(scope["raw_path"]) if size > MAX_HEAD_BYTES or len(lines) > MAX_HEADERS else None

    def _too_large(self, url: bytes) -> Response:
        if len(url) > MAX_HEAD_BYTES // 2:
            return respond_to_status(414, f"the URL is too long: URL and headers may have {MAX_HEAD_BYTES} bytes")
        limit = f"{MAX_HEAD_BYTES} bytes and {MAX_HEADERS} lines"
        return respond_to_status(431, f"headers or trailers are too large: they may have {limit}", self._path())

    def _is_in_head(self) -> bool:
        return self.scope is None or "method" not in self.scope

    def _path(self) -> str:
        # not there before the head is whole
        return "" if self.scope is None else self.scope.get("path", "")

    @abstractmethod
    def _room(self) -> Room:
        """Return the room that all connections of the process share."""

    @abstractmethod
    def _give_up(self) -> bool:
        """End the request under way if it waits for its client, and say whether it did."""

    @abstractmethod
    def _refuse(self, response: Response) -> None:
        """Answer what no application is asked about, and hang up."""

    def _listen_no_more(self) -> None:
        """Parse nothing of what the client sends from here on."""
        self._is_refused = True
        self._unfinished, self._unread = 0, b""
        self.parser = _Deaf()  # type: ignore[assignment]  # all that is asked of it from here on
        if self._hold is not None:
            self._hold.set(0)


def _in_our_words(error: Exception) -> str:
    said = str(error)
    return "; ".join([said, *(fix for start, fix in _FIXES.items() if said.startswith(start))])
