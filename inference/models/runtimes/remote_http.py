"""A pooled HTTP client for remote engines: JSON in both directions, within bounds of size and time."""

from __future__ import annotations

import json
import time
import weakref
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson

from inference import tracing
from inference.errors import ModelOutOfMemory, ModelUnavailable, PredictionFailed
from inference.models.remote_file import NEVER_ASKED, RemoteEngine, is_metadata_address
from inference.models.runtimes.remote_connection import (
    CONNECT_S,
    MOST_ANSWER_BYTES,
    PAUSE_S,
    EngineFailures,
    patience_s,
    short,
)
from inference.small_files import MOST_BYTES

#: the engine is busy: another try may succeed
_TRY_AGAIN = (429, 502, 503)
_TOO_LARGE = 413
_GONE = (401, 403, 404, 429, 502, 503, 504)
_LONGEST_ERROR = 4096

_ASK_AGAIN_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)


class _Reply(NamedTuple):
    """A complete answer: its status with the phrase for it, and its body."""

    status: int
    phrase: str
    content: bytes


class HttpConnection:
    """Keeps connections to an engine. May repeat a request, since a prediction changes nothing."""

    def __init__(self, engine: RemoteEngine, failures: EngineFailures) -> None:
        self._engine = engine
        self._failures = failures
        self._client = httpx.Client(
            base_url=engine.place,
            auth=engine.login,
            headers={"content-type": "application/json", "accept-encoding": "gzip"},
        )
        weakref.finalize(self, self._client.close)

    def ask(self, what: str, body: Any = None) -> Any:
        """Send a request and return its JSON; see `EngineConnection`. `what`: the path. Without a body, it is a GET."""
        content = None if body is None else _encoded(body)
        for left in range(self._engine.retries, -1, -1):
            try:
                answer = self._send(what, content)
            except _ASK_AGAIN_ERRORS as error:
                if not left:
                    raise ModelUnavailable(self._failures.message("does not answer", str(error))) from error
            except httpx.HTTPError as error:  # a timeout: another try would take as long again
                raise self._failures.late(str(error)) from error
            else:
                if answer.status not in _TRY_AGAIN or not left:
                    return self._read(answer)
            time.sleep(PAUSE_S)
        raise AssertionError("unreachable")

    def _send(self, path: str, content: bytes | None) -> _Reply:
        """Send one request, and read its answer within bounds of size and time."""
        method, most = ("GET", MOST_BYTES) if content is None else ("POST", MOST_ANSWER_BYTES)
        patience = patience_s(self._engine)
        until, timeout = time.monotonic() + patience, httpx.Timeout(patience, connect=min(CONNECT_S, patience))
        with self._client.stream(
            method,
            path,
            content=content,
            headers=tracing.headers(),
            extensions=_CHECK_CONNECTIONS,
            timeout=timeout,
        ) as response:
            most = most if response.is_success else MOST_BYTES
            unpack = _unpacker(response.headers.get("content-encoding", ""))
            parts, size = [], 0
            for packed in response.iter_raw():
                part = unpack(packed, most + 1 - size)
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ModelOutOfMemory(self._failures.message(f"answered with more than {most >> 20} MiB"))
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("its answer did not end")
            return _Reply(response.status_code, response.reason_phrase, b"".join(parts))

    def _read(self, answer: _Reply) -> Any:
        if 200 <= answer.status < 300:
            try:
                said = _decoded(answer.content)
            except ValueError as error:
                raise PredictionFailed(self._failures.message("answered with something that is no JSON")) from error
            self._failures.over()
            return said
        said = _reason(answer)
        message = self._failures.message(f"answered {answer.status}", said)
        if answer.status == _TOO_LARGE or "OOM when allocating" in said:
            raise ModelOutOfMemory(message)  # fewer rows may fit
        if answer.status in _GONE:
            raise ModelUnavailable(message)
        raise PredictionFailed(message)


def _check_connection(event: str, info: dict[str, Any]) -> None:
    """Refuse a connection to a metadata service before it carries any data."""
    if event == "connection.connect_tcp.complete":
        connection = info["return_value"]
        address = str(connection.get_extra_info("server_addr")[0])
        if is_metadata_address(address):
            connection.close()
            raise ModelUnavailable(f"the engine's address {NEVER_ASKED}")


_CHECK_CONNECTIONS = {"trace": _check_connection}


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """Return a function that unpacks the next part of an answer, to a number of bytes at most."""
    if encoding in ("", "identity"):
        return lambda packed, _: packed
    if encoding not in ("gzip", "x-gzip"):
        raise PredictionFailed("the engine's answer is packed in a way that was not asked for")
    gzip = zlib.decompressobj(wbits=31)

    def unpack(packed: bytes, most: int) -> bytes:
        try:
            return gzip.decompress(packed, most)
        except zlib.error as error:
            raise PredictionFailed("the engine's answer cannot be unpacked") from error

    return unpack


def _encoded(body: Any) -> bytes:
    """Return JSON with `NaN` and `Infinity` for numbers that are not finite; engines of both protocols read it."""
    if _all_finite(body):
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(body, default=lambda array: array.tolist()).encode()


def _all_finite(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or np.isfinite(value)


def _decoded(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # the protocols have NaN and Infinity, which JSON has not
        try:
            return json.loads(content)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error


def _reason(answer: _Reply) -> str:
    try:
        said = _decoded(answer.content)
    except ValueError:
        said = answer.content[:_LONGEST_ERROR].decode(errors="replace")
    return short(str(said.get("error", said) if isinstance(said, dict) else said)) or answer.phrase
