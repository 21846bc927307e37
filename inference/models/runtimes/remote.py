"""Models that a remote engine computes: a pooled HTTP client for two protocols."""

from __future__ import annotations

import json
import secrets
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from inference.errors import ForecacheError, ModelError, ModelOutOfMemory, ModelUnavailable, PredictionFailed
from inference.features import FeatureContract
from inference.logs import get_logger
from inference.models.remote_file import NEVER_ASKED, RemoteEngine, check_engine_host, is_metadata_address, read_remote
from inference.models.runtimes.remote_protocols import OpenInferenceProtocol, TensorFlowServingProtocol
from inference.models.runtimes.runtime import LoadOptions, as_served
from inference.schema import Block, DType, Signature, TensorSpec, rows_in
from inference.small_files import MOST_BYTES

log = get_logger(__name__)

#: an engine that does not accept a connection within this time is down
_CONNECT_S = 2.0
#: the pause before a request is sent again
_PAUSE_S = 0.05
#: the engine is busy: another try may succeed
_TRY_AGAIN = (429, 502, 503)
_TOO_LARGE = 413
_GONE = (401, 403, 404, 429, 502, 503, 504)
_LONGEST_MESSAGE = 300
_LONGEST_ERROR = 4096
#: eight thousand rows of a thousand numbers
_MOST_ANSWER_BYTES = 256 << 20

_ASK_AGAIN_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)


class _Reply(NamedTuple):
    """A complete answer: its status with the phrase for it, and its body."""

    status: int
    phrase: str
    content: bytes


class RemoteProtocol(Protocol):
    """A protocol of engines: asks for a model's inputs and outputs, and for predictions."""

    def describe(self, ask: Callable[..., Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the declared inputs and outputs of the model. `ask(path, body)` sends one request."""
        ...

    def predict(self, ask: Callable[..., Any], inputs: Block) -> dict[str, Any]:
        """Return each output's values, nested lists or arrays, by name."""
        ...


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> RemoteRuntime:
    """Connect to the engine in `file`, and ask for the inputs and outputs of its model."""
    engine = read_remote(file)
    try:
        check_engine_host(engine, options.engine_hosts)
    except ModelError as error:
        raise ModelError(f"{file}: {error.message}", field="path") from error
    return RemoteRuntime(file, engine)


class RemoteRuntime:
    """A model of a remote engine. Keeps connections. May repeat a call, since a prediction changes nothing."""

    def __init__(self, file: Path, engine: RemoteEngine) -> None:
        self._engine = engine
        self._client = httpx.Client(
            base_url=engine.place,
            auth=engine.login,
            timeout=httpx.Timeout(engine.timeout, connect=min(_CONNECT_S, engine.timeout)),
            headers={"content-type": "application/json", "accept-encoding": "gzip"},
        )
        weakref.finalize(self, self._client.close)
        self._trouble: tuple[str, str] | None = None
        # a failed load is for the author of the file
        self._subject = engine.place
        self._protocol = _protocol(engine)
        try:
            inputs, outputs = self._protocol.describe(self._ask)
        except ForecacheError as error:
            raise ModelError(f"{file}: {error.message}", field="path") from error
        # later failures are for clients, who must not see the address
        self._subject = "its engine"
        self._inputs, self._outputs = inputs, {spec.name: spec for spec in outputs}
        # the best micro-batch depends on the engine's machine, of which only the address is known
        self.device = f"remote {httpx.URL(engine.place).netloc.decode()}"
        self.signature = Signature.of_model(inputs, outputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the engine refused these rows, or answered with something else.
            ModelOutOfMemory: so many rows do not fit into the memory of the engine's device.
            ModelUnavailable: the engine did not answer in time, or does not serve the model.
        """
        rows = rows_in(inputs)
        answered = self._protocol.predict(self._ask, {spec.name: inputs[spec.name] for spec in self._inputs})
        missing = self._outputs.keys() - answered.keys()
        if missing:
            raise PredictionFailed(f"the engine's answer has no output {min(missing)!r}")
        return {name: as_served(_array(answered[name], spec), spec, rows) for name, spec in self._outputs.items()}

    def _ask(self, path: str, body: Any = None) -> Any:
        """Send a request and return its JSON. Sends it again where that may help. Without a body, it is a GET."""
        content = None if body is None else _encoded(body)
        for left in range(self._engine.retries, -1, -1):
            try:
                answer = self._send(path, content)
            except _ASK_AGAIN_ERRORS as error:
                if not left:
                    raise ModelUnavailable(self._message("does not answer", str(error))) from error
            except httpx.HTTPError as error:  # a timeout: another try would take as long again
                raise ModelUnavailable(self._message("did not answer in time", str(error))) from error
            else:
                if answer.status not in _TRY_AGAIN or not left:
                    return self._read(answer)
            time.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    def _send(self, path: str, content: bytes | None) -> _Reply:
        """Send one request, and read its answer within bounds of size and time."""
        method, most = ("GET", MOST_BYTES) if content is None else ("POST", _MOST_ANSWER_BYTES)
        until = time.monotonic() + self._engine.timeout
        with self._client.stream(method, path, content=content, extensions=_CHECK_CONNECTIONS) as response:
            most = most if response.is_success else MOST_BYTES
            unpack = _unpacker(response.headers.get("content-encoding", ""))
            parts, size = [], 0
            for packed in response.iter_raw():
                part = unpack(packed, most + 1 - size)
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ModelOutOfMemory(self._message(f"answered with more than {most >> 20} MiB", ""))
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("its answer did not end")
            return _Reply(response.status_code, response.reason_phrase, b"".join(parts))

    def _read(self, answer: _Reply) -> Any:
        if 200 <= answer.status < 300:
            try:
                said = _decoded(answer.content)
            except ValueError as error:
                raise PredictionFailed(self._message("answered with something that is no JSON", "")) from error
            self._trouble = None
            return said
        said = _reason(answer)
        message = self._message(f"answered {answer.status}", said)
        if answer.status == _TOO_LARGE or "OOM when allocating" in said:
            raise ModelOutOfMemory(message)  # fewer rows may fit
        if answer.status in _GONE:
            raise ModelUnavailable(message)
        raise PredictionFailed(message)

    def _message(self, what: str, said: str) -> str:
        """Return the message of a failure for clients and records: its kind, and a reference to the log.

        They see neither the engine's address nor its own words, which may hold secrets. The log has the words at level
        debug. While the same failure goes on, it has one reference and one line.
        """
        if self._trouble is None or self._trouble[0] != what:
            self._trouble = what, secrets.token_hex(4)
            log.warning("engine.failed", reference=self._trouble[1], engine=self._engine.place, reason=what)
            log.debug("engine.said", reference=self._trouble[1], said=_words(said))
        return f"{self._subject} {what} (reference {self._trouble[1]} in the worker's log)"


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


def _protocol(engine: RemoteEngine) -> RemoteProtocol:
    return OpenInferenceProtocol(engine) if engine.protocol == "open-inference" else TensorFlowServingProtocol(engine)


def _array(values: Any, spec: TensorSpec) -> npt.NDArray[Any]:
    try:
        return np.asarray(values, dtype=object if spec.dtype is DType.STRING else spec.dtype.numpy)
    except (ValueError, TypeError, OverflowError) as error:
        raise PredictionFailed(f"the engine's output {spec.name!r} is no {spec.dtype}") from error


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
    return _words(str(said.get("error", said) if isinstance(said, dict) else said)) or answer.phrase


def _words(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_MESSAGE]
