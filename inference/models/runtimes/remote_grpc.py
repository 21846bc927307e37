"""A gRPC client for remote engines: one channel to all addresses of the engine, within bounds of size and time."""

from __future__ import annotations

import base64
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# these count only if they are set before the import: without the first one, a fork of this process cannot use gRPC
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
from google.protobuf.message import DecodeError

from inference import tracing
from inference.errors import ForecacheError, ModelError, ModelOutOfMemory, ModelUnavailable, PredictionFailed
from inference.models.remote_file import NEVER_ASKED, RemoteEngine, is_metadata_address
from inference.models.runtimes.remote_connection import (
    CONNECT_S,
    MOST_ANSWER_BYTES,
    PAUSE_S,
    EngineFailures,
    patience_s,
)
from inference.protocols.messages import methods_of
from inference.small_files import MOST_BYTES

#: how often the engine's name is looked up again: another address is a new engine, or one more
_LOOK_UP_EVERY_S = 60.0
#: a connection that has been silent for so long when an answer is late may be dead: the next call opens another one
_SILENT_S = 5.0

_Code = grpc.StatusCode
#: as HTTP's 429, 502, 503
_TRY_AGAIN = (_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED)
#: as HTTP's 401, 403, 404, 429, 502, 503, 504
_GONE = (
    _Code.UNAVAILABLE,
    _Code.RESOURCE_EXHAUSTED,
    _Code.NOT_FOUND,
    _Code.UNAUTHENTICATED,
    _Code.PERMISSION_DENIED,
    _Code.UNIMPLEMENTED,
    _Code.CANCELLED,
)
#: the words for a message over a limit, of gRPC's core and Go, Java, Rust; of TensorFlow for memory
_TOO_MANY_ROWS = re.compile(r"larger than max|exceeds maximum size|length too large|OOM when allocating")
_ANSWER_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max|Decompressed message larger than max")
#: gRPC's own words for a channel without a connection
_NO_CONNECTION = ("failed to connect to all addresses", "connections to all backends failing")
#: gRPC's own words for a call whose connection or stream ended
_BROKEN = re.compile(r"Socket closed|Stream removed|Connection reset|Broken pipe|GOAWAY|RST_STREAM|(recv|send)msg:")

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    # a channel tries all addresses, and spreads its calls over those that answer
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.service_config_disable_resolution", 1),
    # else a new channel would share the dead connection of an old one
    ("grpc.use_local_subchannel_pool", 1),
    # `http_proxy` is for HTTP: most proxies do not let gRPC through
    ("grpc.enable_http_proxy", 0),
    # the time to connect
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_S)),
    # gRPC's own are 1 s and 2 minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", MOST_ANSWER_BYTES),
    # no keepalive pings: engines end the connection of a client that pings more often than they allow
)


class GrpcConnection:
    """Keeps a channel to an engine. May repeat a call, since a prediction changes nothing. Threads may share it."""

    def __init__(self, engine: RemoteEngine, failures: EngineFailures) -> None:
        self._engine = engine
        self._failures = failures
        self._lock = threading.Lock()
        self._shared: _Channel | None = None

    def ask(self, what: str, body: Any = None) -> Any:
        """Send a message and return its answer; see `EngineConnection`. `what`: `package.Service/Method`."""
        data = body.SerializeToString()
        for left in range(self._engine.retries, -1, -1):
            patience = patience_s(self._engine)
            channel = self._channel(what)
            try:
                answer = channel.call(what, data, patience)
            except grpc.RpcError as error:
                self._note(channel, error)
                if not left or not _may_try_again(error):
                    raise self._failure(error) from error
            else:
                return self._read(what, answer)
            time.sleep(PAUSE_S)
        raise AssertionError("unreachable")

    def _channel(self, what: str) -> _Channel:
        """Return the channel for a method. Opens another one in a fork, and for other addresses of the engine.

        Raises:
            ModelUnavailable: the engine's name has no address, or one that is never asked.
        """
        if what.endswith("Metadata"):  # once, when the model is loaded: a description has a smaller limit
            return self._opened(MOST_BYTES)
        with self._lock:
            found = self._shared
            if found is None or found.process != os.getpid() or self._has_moved(found):
                found = self._shared = self._opened(MOST_ANSWER_BYTES)
            return found

    def _opened(self, most: int) -> _Channel:
        try:
            return _Channel(self._engine, _addresses(self._engine), most)
        except OSError as error:
            raise ModelUnavailable(self._failures.message("does not answer", str(error))) from error

    def _has_moved(self, channel: _Channel) -> bool:
        now = time.monotonic()
        if now - channel.looked_up_at < _LOOK_UP_EVERY_S:
            return False
        channel.looked_up_at = now
        try:
            return _addresses(self._engine) != channel.addresses
        except OSError:  # names cannot be looked up now, and the connection may still be good
            return False

    def _note(self, channel: _Channel, error: Any) -> None:
        """Give up a channel that has no connection, or may have a dead one. Its other calls go on."""
        code, said = error.code(), error.details() or ""
        has_none = code is _Code.UNAVAILABLE and said.startswith(_NO_CONNECTION)
        is_silent = code is _Code.DEADLINE_EXCEEDED and time.monotonic() - channel.answered_at > _SILENT_S
        if has_none or is_silent:
            with self._lock:
                if self._shared is channel:
                    self._shared = None

    def _read(self, what: str, answer: bytes) -> Any:
        service, _, method = what.partition("/")
        try:
            message = methods_of(service)[method][1].FromString(answer)
        except DecodeError as error:
            raise PredictionFailed(self._failures.message("answered with something that is no such message")) from error
        self._failures.over()
        return message

    def _failure(self, error: Any) -> ForecacheError:
        code, said = error.code(), error.details() or ""
        if code is _Code.DEADLINE_EXCEEDED:
            return self._failures.late(said)
        if code is _Code.RESOURCE_EXHAUSTED and _ANSWER_TOO_LARGE.search(said):
            return ModelOutOfMemory(self._failures.message("answered with more than its limit", said))
        if _is_broken(error):
            return ModelUnavailable(self._failures.message("does not answer", said))
        message = self._failures.message(f"answered {code.name}", said)
        if _TOO_MANY_ROWS.search(said):
            return ModelOutOfMemory(message)  # fewer rows may fit
        return ModelUnavailable(message) if code in _GONE else PredictionFailed(message)


class _Channel:
    """An open channel to some addresses of an engine. Closes when nobody uses it any more.

    gRPC is given addresses, not the name: it would look the name up again by itself, and connect to any address.
    """

    def __init__(self, engine: RemoteEngine, addresses: Sequence[tuple[int, str]], most: int) -> None:
        url = urlsplit(engine.place)
        self.addresses = addresses
        self.process = os.getpid()
        self.looked_up_at = self.answered_at = time.monotonic()
        self._metadata = _credentials(engine)
        target = _target(addresses, url.port or 0)
        options = [*_OPTIONS, ("grpc.max_receive_message_length", most), ("grpc.default_authority", url.netloc)]
        if url.scheme == "grpcs":
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(_authorities()), options)
        else:
            channel = grpc.insecure_channel(target, options)
        self._call = channel.unary_unary
        weakref.finalize(self, channel.close)

    def call(self, method: str, data: bytes, timeout_s: float) -> bytes:
        """Return the bytes of the answer.

        Raises:
            grpc.RpcError: there is none.
        """
        metadata = (*self._metadata, *tracing.headers().items())
        try:
            answer: bytes = self._call(f"/{method}")(data, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() not in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED):
                self.answered_at = time.monotonic()
            raise
        self.answered_at = time.monotonic()
        return answer


def _may_try_again(error: Any) -> bool:
    if _TOO_MANY_ROWS.search(error.details() or ""):
        return False
    return error.code() in _TRY_AGAIN or _is_broken(error)


def _is_broken(error: Any) -> bool:
    """Tell whether the connection failed, not the engine."""
    said = error.details() or ""
    if error.code() is _Code.UNAVAILABLE:
        return said.startswith(_NO_CONNECTION) or bool(_BROKEN.search(said))
    return error.code() in (_Code.INTERNAL, _Code.UNKNOWN) and bool(_BROKEN.search(said))


def _addresses(engine: RemoteEngine) -> tuple[tuple[int, str], ...]:
    """Return the addresses of the engine's host, each with its family.

    Raises:
        OSError: it has none.
        ModelUnavailable: one of them is never asked.
    """
    url = urlsplit(engine.place)
    try:
        found = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from error
    addresses = sorted({(int(family), str(address[0])) for family, *_, address in found})
    if any(is_metadata_address(address) for _, address in addresses):
        raise ModelUnavailable(f"the engine's address {NEVER_ASKED}")
    return tuple(addresses)


def _target(addresses: Sequence[tuple[int, str]], port: int) -> str:
    """Return gRPC's name for the addresses of one family; of two, the one where somebody listens."""
    families = sorted({family for family, _ in addresses})
    family = families[0]
    if len(families) > 1 and not any(_accepts(one, port) for kind, one in addresses if kind == family):
        family = families[1]
    if family == socket.AF_INET6:
        return "ipv6:" + ",".join(f"[{one}]:{port}" for kind, one in addresses if kind == family)
    return "ipv4:" + ",".join(f"{one}:{port}" for kind, one in addresses if kind == family)


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), CONNECT_S).close()
    except OSError:
        return False
    return True


def _authorities() -> bytes | None:
    """Return the certificates that are trusted, from the file that HTTP uses too; None for gRPC's own.

    Raises:
        ModelError: the file cannot be read.
    """
    file = os.environ.get("SSL_CERT_FILE")
    try:
        return Path(file).read_bytes() if file else None
    except OSError as error:
        raise ModelError(f"SSL_CERT_FILE cannot be read: {error}", field="url") from error


def _credentials(engine: RemoteEngine) -> tuple[tuple[str, str], ...]:
    """Return the metadata with the engine's login: user and password, or a password alone as a token."""
    if engine.login is None:
        return ()
    user, password = engine.login
    if not user:
        return (("authorization", f"Bearer {password}"),)
    both = base64.b64encode(f"{user}:{password}".encode()).decode()
    return (("authorization", f"Basic {both}"),)
