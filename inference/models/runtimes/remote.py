"""Models that a remote engine computes, by one of two protocols, over HTTP or gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from inference.errors import ForecacheError, ModelError, PredictionFailed
from inference.features import FeatureContract
from inference.models.remote_file import RemoteEngine, check_engine_host, read_remote
from inference.models.runtimes.remote_connection import Connection, EngineFailures, RemoteProtocol
from inference.models.runtimes.remote_http import HttpConnection
from inference.models.runtimes.remote_protocols import OpenInferenceProtocol, TensorFlowServingProtocol
from inference.models.runtimes.runtime import LoadOptions, as_served
from inference.schema import Block, DType, Signature, TensorSpec, rows_in


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> RemoteRuntime:
    """Connect to the engine in `file`, and ask for the inputs and outputs of its model."""
    engine = read_remote(file)
    try:
        check_engine_host(engine, options.engine_hosts)
        return RemoteRuntime(engine)
    except ForecacheError as error:
        raise ModelError(f"{file}: {error.message}", field="path") from error


class RemoteRuntime:
    """A model of a remote engine.

    Raises:
        ForecacheError: the engine does not answer, or does not serve such a model.
    """

    def __init__(self, engine: RemoteEngine) -> None:
        failures = EngineFailures(engine)
        self._connection, self._protocol = _reached(engine, failures)
        inputs, outputs = self._protocol.describe(self._connection.ask)
        failures.hide_address()
        self._inputs, self._outputs = inputs, {spec.name: spec for spec in outputs}
        # the best micro-batch depends on the engine's machine, of which only the address is known
        self.device = f"remote {urlsplit(engine.place).netloc}"
        self.signature = Signature.of_model(inputs, outputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the engine refused these rows, or answered with something else.
            ModelOutOfMemory: so many rows do not fit into the memory of the engine's device.
            ModelUnavailable: the engine did not answer in time, or does not serve the model.
            DeadlineExceeded: the time of the request in hand is over.
        """
        rows = rows_in(inputs)
        answered = self._protocol.predict(self._connection.ask, {spec.name: inputs[spec.name] for spec in self._inputs})
        missing = self._outputs.keys() - answered.keys()
        if missing:
            raise PredictionFailed(f"the engine's answer has no output {min(missing)!r}")
        return {name: as_served(_array(answered[name], spec), spec, rows) for name, spec in self._outputs.items()}


def _reached(engine: RemoteEngine, failures: EngineFailures) -> tuple[Connection, RemoteProtocol]:
    """Return the connection to an engine, and the protocol to use on it.

    Raises:
        ModelError: the library for gRPC is not installed.
    """
    if not engine.by_grpc:
        http = HttpConnection(engine, failures)
        return http, OpenInferenceProtocol(engine) if engine.is_open_inference else TensorFlowServingProtocol(engine)
    try:
        from inference.models.runtimes import remote_grpc, remote_grpc_protocols
    except ImportError as error:
        raise ModelError(
            f'protocol = "{engine.protocol}" needs grpc, which cannot be imported ({error}): install forecache[grpc] '
            "where workers run",
            field="protocol",
        ) from error
    return remote_grpc.GrpcConnection(engine, failures), remote_grpc_protocols.protocol_of(engine)


def _array(values: Any, spec: TensorSpec) -> npt.NDArray[Any]:
    try:
        return np.asarray(values, dtype=object if spec.dtype is DType.STRING else spec.dtype.numpy)
    except (ValueError, TypeError, OverflowError) as error:
        raise PredictionFailed(f"the engine's output {spec.name!r} is no {spec.dtype}") from error
