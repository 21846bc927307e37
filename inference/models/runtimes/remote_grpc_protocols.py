"""The two protocols of remote engines over gRPC: TensorFlow Serving's, and the Open Inference Protocol's."""

from __future__ import annotations

from typing import Any

from inference.errors import BadInput, ModelError, PredictionFailed
from inference.models.remote_file import RemoteEngine
from inference.models.runtimes.remote_connection import MOST_ANSWER_BYTES, Ask, RemoteProtocol
from inference.models.runtimes.remote_protocols import open_inference_specs, tensorflow_specs
from inference.protocols.messages import message_class
from inference.protocols.open_inference_grpc import infer_message, output_tensors
from inference.protocols.tensor_messages import DATA_TYPES, tensor_of, write_content
from inference.protocols.tensorflow_grpc import SERVING
from inference.schema import Block, TensorSpec

_PREDICTIONS = f"{SERVING}.PredictionService"
_INFERENCE = "inference.GRPCInferenceService"
_TYPE_NAMES = {number: name for name, number in DATA_TYPES.items()}

Tensors = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def protocol_of(engine: RemoteEngine) -> RemoteProtocol:
    """Return the protocol in which an engine is asked."""
    return OpenInferenceGrpc(engine) if engine.is_open_inference else TensorFlowServingGrpc(engine)


class TensorFlowServingGrpc:
    """TensorFlow Serving's PredictionService. Numbers go as their bytes."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._outputs: tuple[TensorSpec, ...] = ()

    def describe(self, ask: Ask) -> Tensors:
        """Return the inputs and outputs of the signature, ordered by name: the engine's messages have no order.

        Raises:
            ModelError: the model has no such signature, or one that cannot be served.
        """
        request = message_class(f"{SERVING}.GetModelMetadataRequest")(metadata_field=["signature_def"])
        self._write_spec(request.model_spec)
        answer = ask(f"{_PREDICTIONS}/GetModelMetadata", request)
        known = message_class(f"{SERVING}.SignatureDefMap")()
        if not answer.metadata["signature_def"].Unpack(known):
            raise ModelError("its engine does not describe the model as TensorFlow Serving does")
        if self._engine.signature not in known.signature_def:
            names = ", ".join(sorted(name for name in known.signature_def if not name.startswith("__")))
            raise ModelError(f"the model has no signature {self._engine.signature!r}; it has: {names}")
        signature = known.signature_def[self._engine.signature]
        inputs = tensorflow_specs(self._engine.name, "input", _infos(signature.inputs))
        self._outputs = tensorflow_specs(self._engine.name, "output", _infos(signature.outputs))
        return inputs, self._outputs

    def predict(self, ask: Ask, inputs: Block) -> dict[str, Any]:
        """Return the outputs' values by name.

        Raises:
            PredictionFailed: the answer does not have the form of the protocol.
        """
        request = message_class(f"{SERVING}.PredictRequest")(output_filter=[spec.name for spec in self._outputs])
        self._write_spec(request.model_spec)
        request.model_spec.signature_name = self._engine.signature
        for name, values in inputs.items():
            write_content(request.inputs[name], values)
        answer = ask(f"{_PREDICTIONS}/Predict", request)
        try:
            return {name: tensor_of(one, name, most_bytes=MOST_ANSWER_BYTES) for name, one in answer.outputs.items()}
        except BadInput as error:
            raise PredictionFailed("its engine did not answer as TensorFlow Serving does") from error

    def _write_spec(self, spec: Any) -> None:
        spec.name = self._engine.name
        if self._engine.version:
            spec.version.value = int(self._engine.version)
        if self._engine.label:
            spec.version_label = self._engine.label


def _infos(tensors: Any) -> dict[str, Any]:
    """Return the descriptions of tensors in the form of TensorFlow Serving's JSON."""
    return {
        name: {
            "dtype": _TYPE_NAMES.get(one.dtype, str(one.dtype)),
            "tensor_shape": {
                "unknown_rank": one.tensor_shape.unknown_rank,
                "dim": [{"size": dim.size} for dim in one.tensor_shape.dim],
            },
        }
        for name, one in tensors.items()
    }


class OpenInferenceGrpc:
    """The Open Inference Protocol's GRPCInferenceService. Tensors go as raw contents."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}

    def describe(self, ask: Ask) -> Tensors:
        """Return the inputs and outputs in the order of the model's metadata.

        Raises:
            ModelError: the metadata name none, or some that cannot be served.
        """
        request = message_class("inference.ModelMetadataRequest")(
            name=self._engine.name, version=self._engine.version or ""
        )
        answer = ask(f"{_INFERENCE}/ModelMetadata", request)
        self._inputs = open_inference_specs(self._engine.name, "input", _tensors(answer.inputs))
        self._outputs = open_inference_specs(self._engine.name, "output", _tensors(answer.outputs))
        return tuple(self._inputs.values()), tuple(self._outputs.values())

    def predict(self, ask: Ask, inputs: Block) -> dict[str, Any]:
        """Return the outputs' values by name.

        Raises:
            PredictionFailed: the answer does not have the form of the protocol.
        """
        request = infer_message(self._engine.name, self._engine.version or "", inputs, self._inputs, self._outputs)
        answer = ask(f"{_INFERENCE}/ModelInfer", request)
        try:
            return output_tensors(answer)
        except BadInput as error:
            raise PredictionFailed("its engine did not answer by the Open Inference Protocol") from error


def _tensors(described: Any) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in described]
