"""The HTTP server under Flower: it bounds what clients may hold, before anybody is asked for a password."""

from __future__ import annotations

import socket
from typing import Any

from flower.app import Flower
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate

from app.dashboard.entrance import Entrance
from app.http import places
from inference.errors import RateLimited

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
#: of a body without the password: enough for Flower to answer 401 and not 400
MAX_STRANGERS_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 256
#: from the opening of a connection to the end of its first head
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 10.0
#: between two pieces of an answer that the client takes
READ_TIMEOUT_S = 20.0
#: longer than proxies keep a connection, so that they never send into one that is being closed
IDLE_TIMEOUT_S = 75.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedServer(HTTPServer):
    """Tornado's server with bounds. If connections are too many, those go first that have been silent for longest."""

    def initialize(self, flower: Flower, entrance: Entrance) -> None:  # type: ignore[override]  # ours differ
        """Set the bounds; Tornado calls it with what the constructor was given."""
        super().initialize(
            flower,
            max_header_size=MAX_HEAD_BYTES,
            max_body_size=MAX_BODY_BYTES,
            max_buffer_size=2 * MAX_BODY_BYTES,
            body_timeout=BODY_TIMEOUT_S,
            idle_connection_timeout=IDLE_TIMEOUT_S,
        )
        self._most, _ = places(MAX_CONNECTIONS)
        self._entrance = entrance
        #: connections that wait for their clients; the one that has waited for longest is the first
        self._silent: dict[Any, None] = {}
        #: by connection, whether a whole head ever came
        self._asked: dict[Any, bool] = {}

    def handle_stream(self, stream: Any, address: Any) -> None:
        """Take a new connection, if there is a place for it."""
        if len(self._connections) >= self._most and not self._make_place():
            stream.write(_FULL)
            stream.close()
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: the system ends a connection whose client takes nothing
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(READ_TIMEOUT_S * 1000))
        super().handle_stream(stream, address)

    def _make_place(self) -> bool:
        """End the connection that has been silent for longest, else one whose client does not take its answer."""
        slow_readers = (one for one in self._connections if one.stream.writing())
        leaving = next((one for one in (*self._silent, *slow_readers) if not one.stream.closed()), None)
        if leaving is not None:
            leaving.stream.close()
        return leaving is not None

    def start_request(self, server_conn: Any, request_conn: Any) -> HTTPMessageDelegate:
        """Return what takes the next request of a connection; Tornado asks before any byte of it has come."""
        self._silent[server_conn] = None
        if server_conn not in self._asked:
            self._asked[server_conn] = False
            server_conn.stream.io_loop.call_later(HEAD_TIMEOUT_S, self._end_if_it_never_asked, server_conn)
        return _BoundedRequest(self, super().start_request(server_conn, request_conn), server_conn, request_conn)

    def _end_if_it_never_asked(self, server_conn: Any) -> None:
        if not self._asked.get(server_conn, True):
            server_conn.stream.close()

    def head_came(self, server_conn: Any, request_conn: Any, headers: HTTPHeaders) -> None:
        """Bound the body of a request by whether the password came with it."""
        self._asked[server_conn] = True
        if not (_may_be_large(headers) and self._is_known(headers, request_conn.context.remote_ip)):
            request_conn.set_max_body_size(MAX_STRANGERS_BODY_BYTES)

    def _is_known(self, headers: HTTPHeaders, address: str) -> bool:
        shown = headers.get("Authorization")
        try:
            return shown is not None and self._entrance.admits(shown, address)
        except RateLimited:  # or the size of a body would tell what nobody looks at
            return False

    def all_came(self, server_conn: Any) -> None:
        """Note that a client waits for its answer."""
        self._silent.pop(server_conn, None)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection."""
        self._silent.pop(server_conn, None)
        self._asked.pop(server_conn, None)
        super().on_close(server_conn)


def _may_be_large(headers: HTTPHeaders) -> bool:
    """Tell whether a body may be more than a stranger's; only then is the password looked at before it comes."""
    length = headers.get("Content-Length", "0")
    return "Transfer-Encoding" in headers or not length.isdecimal() or int(length) > MAX_STRANGERS_BODY_BYTES


class _BoundedRequest(HTTPMessageDelegate):
    """Hands a request on to Flower, and tells the server how far it has come."""

    def __init__(self, server: BoundedServer, inner: HTTPMessageDelegate, server_conn: Any, request_conn: Any) -> None:
        self._server, self._inner, self._server_conn, self._request_conn = server, inner, server_conn, request_conn

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Any:
        self._server.head_came(self._server_conn, self._request_conn, headers)
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._server.all_came(self._server_conn)
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()
