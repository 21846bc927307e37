"""What comes before an application is asked: heads, framing and bodies in pieces, to the server's own connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from app.api.connections import Connection
from app.api.limits import MAX_HEAD_BYTES, MAX_HEADERS
from fuzzing.deployment import make_application
from fuzzing.rule import BrokenRule, Parser, bytes_of

_HIT = "GET /predict/a?model=plain HTTP/1.1\r\nHost: localhost\r\n"
_POST = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_BODY = '{"entity_ids": ["a"], "model": "plain"}'
_CHUNKED = _POST + "Transfer-Encoding: chunked\r\n"
#: what a transport hands over at once
_READ_BYTES = 64 * 1024
#: of one connection, beside what is being read: a head, bodies that wait for the application, requests that wait
_MOST_HELD = 2 * MAX_HEAD_BYTES + 4 * _READ_BYTES + 150 * 2 * MAX_HEADERS
#: turns of the event loop after each piece, and in the end until nothing moves
_TURNS, _MOST_TURNS = 3, 500
HANGS_S = 5.0


def _seeds() -> Iterator[dict[str, Any]]:
    size = f"Content-Length: {len(_BODY)}\r\n\r\n"
    yield {"pieces": [_HIT + "\r\n"]}
    yield {"pieces": [_HIT, "\r\n", [_HIT + "\r\n", 20]], "ends": True}
    yield {"pieces": [_POST + size, _BODY]}
    yield {"pieces": [_CHUNKED + "\r\n", "27\r\n" + _BODY + "\r\n", "0\r\n", "Trailer: x\r\n\r\n"]}
    yield {"pieces": [_CHUNKED + "\r\n", ["1;a=b\r\n \r\n", 3000], "0\r\n\r\n"]}
    yield {"pieces": [_HIT, ["a: b\r\n", 900], "\r\n"]}
    yield {"pieces": [_HIT + "X: ", ["x", 66000], "\r\n\r\n"]}
    yield {"pieces": ["GET /", ["a", 66000], " HTTP/1.1\r\n\r\n"]}
    yield {
        "pieces": [_HIT + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n\r\n", _HIT + "\r\n"]
    }
    yield {"pieces": [_POST + "Expect: 100-continue\r\n" + size, _BODY, _HIT + "\r\n"]}
    yield {"pieces": ["CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"]}
    yield {"pieces": ["OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD /predict/a%20b?x=%ff HTTP/1.0\r\n\r\n"]}
    yield {"pieces": ["GET /predict/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", _POST + "\r\n"]}
    yield {"pieces": ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\0\1\0"]}
    yield {"pieces": ["GET http://localhost/predict/a;b?x#y HTTP/1.1\r\nHost: [::]\r\nX-Request-ID: r1\r\n\r\n"]}


class _Transport(asyncio.Transport):
    """A connection whose client takes everything at once, or nothing at all."""

    def __init__(self, is_read: bool) -> None:
        super().__init__()
        self.is_closed = self.is_paused = self.is_aborted = False
        self.written = bytearray()
        self._is_read = is_read

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0 if self._is_read else len(self.written)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else _Socket() if name == "socket" else default


class _Socket:
    family = 2

    def getsockopt(self, *_: int) -> int:
        return 0

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    getsockname = getpeername


class _Raised(logging.Handler):
    """Keeps what uvicorn logs as errors, which are exceptions that it caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_raised = _Raised()


@cache
def _server() -> tuple[Any, Any, asyncio.AbstractEventLoop]:
    app, loop = make_application(), asyncio.new_event_loop()
    config = uvicorn.Config(app, http=Connection, ws="none", log_config=None, access_log=False, proxy_headers=False)
    config.load()
    config.loaded_app = app
    logging.getLogger("uvicorn.error").addHandler(_raised)
    logging.getLogger("uvicorn.error").propagate = False
    loop.set_exception_handler(_on_error)
    return app, config, loop


_errors: list[Any] = []


def _on_error(_: Any, context: dict[str, Any]) -> None:
    _errors.append(context.get("exception") or context["message"])


def attempt(example: Any) -> None:
    """Send pieces over one connection; no exception comes of it, and what is held stays bounded."""
    pieces = example.get("pieces") if isinstance(example, dict) else None
    if not isinstance(pieces, list):
        return
    app, config, loop = _server()
    _errors.clear()
    _raised.records.clear()
    transport = _Transport(is_read=example.get("reads", True) is not False)
    loop.run_until_complete(_talk(config, transport, [bytes_of(piece) for piece in pieces], bool(example.get("ends"))))
    for error in _errors:
        raise BrokenRule(f"an exception escaped: {error}") from (error if isinstance(error, Exception) else None)
    for record in _raised.records:
        raise BrokenRule(record.getMessage()) from (record.exc_info or (None, None))[1]
    if app.memory.held:
        held, app.memory.held = app.memory.held, 0
        raise BrokenRule(f"{held} bytes are counted of a connection that is over")


async def _talk(config: Any, transport: _Transport, pieces: list[bytes], ends: bool) -> None:
    state = ServerState()
    connection = Connection(config, state, {}, asyncio.get_running_loop())
    connection.connection_made(transport)
    try:
        for piece in pieces:
            for start in range(0, len(piece), _READ_BYTES):
                await _turns(transport)
                if transport.is_closed or transport.is_paused:
                    return
                connection.data_received(piece[start : start + _READ_BYTES])
                _check_held(connection)
        await _turns(transport)
        if ends and not transport.is_closed and not connection.eof_received():
            transport.close()
        await _turns(transport)
        connection._next_check.cancel()
        connection._check_client()
        _check_held(connection)
    finally:
        transport.is_closed = True
        connection.connection_lost(None)
        if state.tasks:  # what a thread parses takes its time
            await asyncio.wait(state.tasks, timeout=HANGS_S)


async def _turns(transport: _Transport) -> None:
    """Let what has come be parsed and answered; a client that is not read waits for longer."""
    for turn in range(_MOST_TURNS):
        await asyncio.sleep(0)
        if turn >= _TURNS and not transport.is_paused:
            return


def _check_held(connection: Any) -> None:
    cycle = connection.cycle
    held = sum(len(name) + len(value) + 150 for name, value in connection.headers or ())
    held += len(connection._unread) + len(connection.pipeline) * 4096 + (len(cycle.body) if cycle else 0)
    held += len(getattr(connection, "url", b""))  # not there before the first
    if held > _MOST_HELD:
        raise BrokenRule(f"a connection holds {held} bytes")


PARSER = Parser(_seeds, attempt)
