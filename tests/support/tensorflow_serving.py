"""A server that answers as TensorFlow Serving's REST API does, to the letter of its sources, over models of numpy.

No registry carries TensorFlow Serving itself. It refuses what the real one refuses: null, wrong shapes, both or neither
of `instances` and `inputs`, integers written as floats.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

_PATH = re.compile(r"^/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(/metadata|:predict)?$")
_NUMPY = {"DT_FLOAT": np.float32, "DT_INT64": np.int64, "DT_STRING": object}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ServedModel:
    """`inputs` and `outputs`: name → (dtype, shape of a row)."""

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    compute: Callable[..., dict[str, np.ndarray]]
    version: int = 7
    labels: dict[str, int] = field(default_factory=lambda: {"stable": 7})


class TensorFlowServingServer:
    """Serves until it leaves the `with` block. `refuse_next`: statuses that the next predictions are turned away with;
    `delay_s`: how long each prediction takes; `predictions`: how many were asked for; `connections`: by how many."""

    def __init__(self, models: dict[str, ServedModel]) -> None:
        self.models = models
        self.refuse_next: list[int] = []
        self.delay_s = 0.0
        self.predictions = 0
        self.connections: set[Any] = set()
        self._open: set[Any] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._handle(self, None)

            def do_POST(self) -> None:
                server._handle(self, self.rfile.read(int(self.headers["content-length"])))

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> TensorFlowServingServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def close_connections(self) -> None:
        """Cut every connection, as an engine does that dies."""
        for connection in self._open:
            with suppress(OSError):  # it may be gone already
                connection.shutdown(socket.SHUT_RDWR)

    def _handle(self, request: Any, body: bytes | None) -> None:
        self.connections.add(request.client_address)
        self._open.add(request.connection)
        try:
            status, answer = 200, self._answer(request.path, body)
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        content = json.dumps(answer).encode()  # NaN and Infinity as bare tokens, floats with a point
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _answer(self, path: str, body: bytes | None) -> Any:
        match = _PATH.match(path)
        if not match or (match[4] == ":predict") != (body is not None):
            raise Refusal(400, f"Malformed request: {'POST' if body else 'GET'} {path}")
        model = self._find(match[1], match[2], match[3])
        if match[4] == "/metadata":
            return _metadata(match[1], model)
        self._turn_away()
        return _predict(model, json.loads(body or b""))

    def _turn_away(self) -> None:
        """Count a request for predictions, and delay or refuse it as the test wishes."""
        self.predictions += 1
        if self.refuse_next:
            raise Refusal(self.refuse_next.pop(0), "Servable is not ready")
        time.sleep(self.delay_s)

    def _find(self, name: str, version: str | None, label: str | None) -> ServedModel:
        model = self.models.get(name)
        if model is None or (version and int(version) != model.version):
            which = f"Specific({name}, {version})" if version else f"Latest({name})"
            raise Refusal(404, f"Servable not found for request: {which}")
        if label and label not in model.labels:
            raise Refusal(400, f"Unrecognized servable version label: {label}")
        return model


def _metadata(name: str, model: ServedModel) -> Any:
    def tensors(specs: dict[str, tuple[str, tuple[int, ...]]]) -> Any:
        return {
            key: {
                "dtype": dtype,
                "tensor_shape": {
                    "dim": [{"size": str(size), "name": ""} for size in (-1, *shape)], "unknown_rank": False,
                },
                "name": f"{key}:0",
            }
            for key, (dtype, shape) in specs.items()
        }  # fmt: skip

    signature = {
        "inputs": tensors(model.inputs), "outputs": tensors(model.outputs),
        "method_name": "tensorflow/serving/predict",
    }  # fmt: skip
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _predict(model: ServedModel, body: Any) -> Any:
    if ("instances" in body) == ("inputs" in body):
        raise Refusal(400, "Missing 'inputs' or 'instances' key")
    if body.get("signature_name", "serving_default") != "serving_default":
        raise Refusal(400, f'Serving signature name: "{body["signature_name"]}" not found in signature def')
    by_rows = "instances" in body
    given = body["instances"] if by_rows else body["inputs"]
    if by_rows:
        columns = {name: [row[name] if isinstance(row, dict) else row for row in given] for name in model.inputs}
    else:
        columns = given if isinstance(given, dict) else {next(iter(model.inputs)): given}
    arrays = {name: _tensor(name, columns, *spec) for name, spec in model.inputs.items()}
    outputs = {name: values.tolist() for name, values in model.compute(**arrays).items()}
    if not by_rows:
        return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def _tensor(name: str, columns: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in columns:
        raise Refusal(400, f"Missing named input: {name}")
    for value in np.asarray(columns[name], dtype=object).ravel():
        legal = isinstance(value, str) if dtype == "DT_STRING" else isinstance(value, int | float)
        if not legal or (dtype == "DT_INT64" and not isinstance(value, int)):
            raise Refusal(400, f"JSON Value: {value} Type: {type(value).__name__} is not of expected type")
    array = np.asarray(columns[name], dtype=_NUMPY[dtype])
    if array.shape[1:] != shape:
        raise Refusal(400, f"input {name} must have shape {list(shape)}")
    return array
