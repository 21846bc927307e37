"""The server's connections: uvicorn's, with a short way for the one request that has to be fast.

uvicorn starts a task for each request, and the task's messages to and fro are checked and written one by one. That
costs more than the rest of a hit. Here a hit is answered with one write when its look-up is over; whatever is not a
hit goes uvicorn's way from there. Parsing, keep-alive, pipelining and shutdown are uvicorn's throughout.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api import hot_path
from app.api.naming import is_named

_NONE: list[tuple[bytes, bytes]] = []


class Connection(HttpToolsProtocol):
    """One client's connection to an `Application`."""

    #: the server's own headers (it makes a new list each second), and the start of an answer with them
    _own_headers = _NONE
    _head = b""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request; uvicorn calls it once the one before it on this connection is answered."""
        scope: Any = cycle.scope
        # uvicorn puts another application in when it refuses
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
