"""The server's connections: they answer at once what needs no worker.

uvicorn starts a task for each request and writes each message of the task; that costs more than the rest of a hit.
Here the connection writes a hit, or a refusal, when the look-up ends. Every other request goes uvicorn's way. The
bounds are those of `bounded_connections.py`; parsing, pipelining and shutdown are uvicorn's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from time import time_ns
from typing import Any

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.api import hot_path
from app.api.bounded_connections import STEP_BYTES, BoundedConnection
from app.api.requests import HOT_ROUTE, SPAN, begin_span
from inference import tracing


class Connection(BoundedConnection):
    """One client's connection to an `Application`."""

    __slots__ = ("_head", "_repeatable", "_server_headers", "_tail")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: the server's headers (uvicorn makes a new list each second), and the start of a hit's answer with them
        self._server_headers: list[tuple[bytes, bytes]] | None = None
        self._head = b""
        #: `tail_of` the last piece of bytes if a request begins with it; the same if the last request was a hit
        self._tail = self._repeatable = b""

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the client, unless they repeat the last hit but for its id."""
        tail, self._repeatable = self._repeatable, b""
        if tail and (target := hot_path.repeated_target(data, tail)):
            self._repeat(target)
            return
        cycle = self.cycle
        is_at_start = cycle is not None and cycle.scope is self.scope and not cycle.more_body
        may_repeat = is_at_start and len(data) <= STEP_BYTES and not self._is_surplus
        self._tail = hot_path.tail_of(data) if may_repeat else b""
        super().data_received(data)

    def _repeat(self, target: bytes) -> None:
        """Begin a request that equals the hit before it but for the path: equal bytes parse to equal headers.

        It uses the answered request again, which spares parser and objects, a seventh of a hit.
        """
        cycle = self.cycle
        scope = cycle.scope.copy()  # a new object: it stands for the request
        scope["path"], scope["raw_path"] = target.decode(), target
        self.scope = cycle.scope = scope
        cycle.response_started = cycle.response_complete = False
        cycle.keep_alive = not self.app.drain.is_closing
        cycle.default_headers = self.server_state.default_headers
        self._look_up(cycle)

    def _answer(self, cycle: RequestResponseCycle) -> None:
        """Answer a request: a prediction of one entity at once if it can be, all else in a task."""
        scope: Any = cycle.scope
        if (
            cycle.waiting_for_100_continue
            or not hot_path.is_hot(scope)
            or hot_path.has_any(scope, self.app.headers_of_longer_answers)
        ):
            self._answer_in_task(cycle, self.app)
            return
        self._look_up(cycle)

    def _look_up(self, cycle: RequestResponseCycle) -> None:
        """Begin a request that may be a hit."""
        scope: Any = cycle.scope
        request = hot_path.HotRequest(self.app.process.service, self.app.access, scope)
        tracer = tracing.tracer
        if tracer is not None and tracer.samples(scope["headers"]):
            request.began_ns = time_ns()
        answer = partial(self._answer_at_once, cycle, request)
        if not request.begin(answer):
            self.loop.call_soon(answer)  # not now: the parser may be within this request

    def _answer_at_once(self, cycle: RequestResponseCycle, request: hot_path.HotRequest) -> None:
        """Write the answer. A request that has to wait for a worker, or for its client, goes on in a task."""
        look_up = (request.began_ns, time_ns()) if request.began_ns else None
        scope: Any = cycle.scope
        request.answer()
        if cycle.disconnected:
            return
        is_written, status = False, 200
        if request.body is not None:
            is_written = self._write_answer(cycle, request.body)
        elif request.error is not None:
            response = request.refusal()
            is_written, status = self._write_response(cycle, response), response.status_code
        if not is_written:
            scope[hot_path.BEGUN] = request
            scope[SPAN] = None if look_up is None else begin_span(scope, look_up)
            request.write = partial(self._write_answer, cycle)
            self._answer_in_task(cycle, self.app)
            return
        if look_up is not None and tracing.tracer is not None:
            tracing.tracer.hit(scope["headers"], HOT_ROUTE, look_up, status)
        if cycle is self.cycle and cycle.keep_alive and not cycle.more_body:
            self._repeatable = self._tail

    def _write_answer(self, cycle: RequestResponseCycle, body: bytes) -> bool:
        """Write a prediction with its head at once; uvicorn's `send` writes twice. False if the client is slow."""
        if cycle.default_headers is not self._server_headers:
            self._server_headers = cycle.default_headers
            self._head = _head(200, (*cycle.default_headers, hot_path.CONTENT_TYPE))
        return self._write(cycle, self._head, body)

    def _write_response(self, cycle: RequestResponseCycle, response: Response) -> bool:
        """Write a whole response as `_write_answer` does."""
        lines = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
        head = _head(response.status_code, (*cycle.default_headers, *lines))
        return self._write(cycle, head, bytes(response.body))

    def _write(self, cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
        if cycle.disconnected:
            return True
        if cycle.flow.write_paused:
            return False
        close = b"" if cycle.keep_alive else b"connection: close\r\n"
        cycle.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (head, len(body), close, body))
        # uvicorn's `send` does the same after the last message
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % pair for pair in headers])
