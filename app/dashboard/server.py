"""Runs the dashboard: Flower behind an HTTP server that limits what clients may hold."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from typing import Any

from flower.app import Flower
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate
from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets

from app.dashboard.access import Credentials, DashboardAccess, find_credentials
from app.dashboard.flower_app import build_flower, count_by_our_url, forget_workers, watch_for_silence
from app.http import places, raise_descriptors
from inference.deployment import Deployment
from inference.errors import RateLimited, SettingsError
from inference.logs import configure_logging, get_logger
from inference.redis.clients import WORKER
from inference.settings import Settings
from tasks.broker import CeleryBroker
from tasks.celery_app import make_celery

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
#: limit of a body without the password: large enough for Flower to answer 401 and not 400
MAX_STRANGERS_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 256
#: from the opening of a connection to the end of its first head
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 10.0
#: between two pieces of an answer that the client takes
READ_TIMEOUT_S = 20.0
#: longer than proxies keep a connection, so that they never send into one that is closing
IDLE_TIMEOUT_S = 75.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FORGETS_EVERY_MS = 60_000
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SettingsError: the address or the credentials cannot be used.
    """
    configure_logging("dashboard", form=settings.logs.format, level=settings.logs.level)
    # a page refreshes every 2 s and would fill the log
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    # it asks workers that still load their models, and warns of each one without an answer
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    sockets = _listen(settings.dashboard.host, settings.dashboard.port)
    credentials = find_credentials(settings)
    watch_for_silence()
    count_by_our_url(settings)
    access = DashboardAccess(credentials)
    access.guard()
    with Deployment(settings, WORKER, CeleryBroker) as deployment:
        flower = build_flower(deployment, make_celery(settings), credentials)
        raise_descriptors()
        BoundedServer(flower, access).add_sockets(sockets)
        for number in (signal.SIGINT, signal.SIGTERM):
            flower.io_loop.asyncio_loop.add_signal_handler(number, flower.stop)
        PeriodicCallback(lambda: forget_workers(flower), _FORGETS_EVERY_MS).start()
        _announce(settings, credentials)
        flower.start()


def _listen(host: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(port, address=host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "stop what listens there, or set [dashboard] port"
            raise SettingsError(f"port {port} is taken: {fix}", field="dashboard.port") from error
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}): set [dashboard] host and port",
            field="dashboard.host",
        ) from error


def _announce(settings: Settings, credentials: Credentials) -> None:
    """Log the URL and the place of the password, but never the password."""
    host, port = settings.dashboard.host, settings.dashboard.port
    root = f"http://{f'[{host}]' if ':' in host else host}:{port}/{settings.dashboard.url_prefix.strip('/')}"
    log.info(
        "dashboard.ready",
        url=f"{root.rstrip('/')}/hit-rates",
        username=credentials.username,
        password_in=str(credentials.file or "the settings"),
    )
    if host not in _LOOPBACK:
        log.warning("dashboard.remote", host=host, advice="basic auth over plain HTTP: put a TLS proxy before it")


class BoundedServer(HTTPServer):
    """Tornado's server with limits. If there are too many connections, those that are silent for longest end first."""

    def initialize(self, flower: Flower, access: DashboardAccess) -> None:  # type: ignore[override]  # ours differ
        """Set the limits; Tornado calls it with the arguments of the constructor."""
        super().initialize(
            flower,
            max_header_size=MAX_HEAD_BYTES,
            max_body_size=MAX_BODY_BYTES,
            max_buffer_size=2 * MAX_BODY_BYTES,
            body_timeout=BODY_TIMEOUT_S,
            idle_connection_timeout=IDLE_TIMEOUT_S,
        )
        self._most, _ = places(MAX_CONNECTIONS)
        self._access = access
        #: connections that wait for their clients; the longest wait is first
        self._silent: dict[Any, None] = {}
        #: connection → whether a whole head ever arrived
        self._asked: dict[Any, bool] = {}

    def handle_stream(self, stream: Any, address: Any) -> None:
        """Take a new connection if there is a place for it."""
        if len(self._connections) >= self._most and not self._make_place():
            stream.write(_FULL)
            stream.close()
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux ends a connection whose client takes nothing
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(READ_TIMEOUT_S * 1000))
        super().handle_stream(stream, address)

    def _make_place(self) -> bool:
        """End the connection that is silent for longest, otherwise one whose client does not take its answer."""
        slow_readers = (one for one in self._connections if one.stream.writing())
        leaving = next((one for one in (*self._silent, *slow_readers) if not one.stream.closed()), None)
        if leaving is not None:
            leaving.stream.close()
        return leaving is not None

    def start_request(self, server_conn: Any, request_conn: Any) -> HTTPMessageDelegate:
        """Return the delegate for the next request of a connection; Tornado asks before its first byte arrives."""
        self._silent[server_conn] = None
        if server_conn not in self._asked:
            self._asked[server_conn] = False
            server_conn.stream.io_loop.call_later(HEAD_TIMEOUT_S, self._end_if_it_never_asked, server_conn)
        return _BoundedRequest(self, super().start_request(server_conn, request_conn), server_conn, request_conn)

    def _end_if_it_never_asked(self, server_conn: Any) -> None:
        if not self._asked.get(server_conn, True):
            server_conn.stream.close()

    def head_came(self, server_conn: Any, request_conn: Any, headers: HTTPHeaders) -> None:
        """Limit the body of a request: less without the password."""
        self._asked[server_conn] = True
        if not (_may_be_large(headers) and self._is_known(headers, request_conn.context.remote_ip)):
            request_conn.set_max_body_size(MAX_STRANGERS_BODY_BYTES)

    def _is_known(self, headers: HTTPHeaders, address: str) -> bool:
        shown = headers.get("Authorization")
        try:
            return shown is not None and self._access.admits(shown, address)
        except RateLimited:  # it was not compared, and the limit must not tell
            return False

    def all_came(self, server_conn: Any) -> None:
        """Note that the client waits for its answer now."""
        self._silent.pop(server_conn, None)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection."""
        self._silent.pop(server_conn, None)
        self._asked.pop(server_conn, None)
        super().on_close(server_conn)


def _may_be_large(headers: HTTPHeaders) -> bool:
    """Return whether a body may be over a stranger's limit: only then check the password before it arrives."""
    length = headers.get("Content-Length", "0")
    return "Transfer-Encoding" in headers or not length.isdecimal() or int(length) > MAX_STRANGERS_BODY_BYTES


class _BoundedRequest(HTTPMessageDelegate):
    """Passes a request on to Flower, and tells the server about its progress."""

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
