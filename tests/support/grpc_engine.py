"""An engine that is asked by gRPC, in both protocols, over models of numpy. Tests make it misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from inference.protocols.messages import message_class, methods_of
from inference.protocols.open_inference import datatype
from inference.protocols.tensor_messages import DATA_TYPES, tensor_of, write_tensor
from inference.protocols.tensors import text_from_bytes, text_to_bytes
from inference.schema import DType
from tests.support.tensorflow_serving import ServedModel

PREDICTIONS, INFERENCE = "tensorflow.serving.PredictionService", "inference.GRPCInferenceService"
_DTYPES = {"DT_FLOAT": DType.FLOAT32, "DT_INT64": DType.INT64, "DT_STRING": DType.STRING}
_OK = grpc.StatusCode


class GrpcEngine:
    """Serves until it leaves the `with` block. `refuse_next`: statuses that the next predictions are turned away with,
    and words for them; `delay_s`: how long each prediction takes; `predictions`: how many were asked for, with how much
    time left each (`deadlines`); `peers`: the connections; `said`: the metadata of the last call; `spoil`: changes each
    answer's message or bytes; `most_bytes`: of a request; `pair`: key and certificate for TLS."""

    def __init__(
        self,
        models: dict[str, ServedModel],
        *,
        address: str = "127.0.0.1:0",
        most_bytes: int = 4 << 20,
        pair: tuple[bytes, bytes] | None = None,
        options: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.models = models
        self.refuse_next: list[tuple[grpc.StatusCode, str]] = []
        self.delay_s = 0.0
        self.deadlines: list[float | None] = []
        self.peers: set[str] = set()
        self.said: dict[str, str] = {}
        self.spoil: Callable[[Any], Any] = lambda message: message
        self.compression = grpc.Compression.NoCompression
        self._stopped = threading.Event()
        self._server = grpc.server(
            ThreadPoolExecutor(8),
            handlers=[_Handlers(self)],
            options=[("grpc.max_receive_message_length", most_bytes), ("grpc.max_send_message_length", -1), *options],
        )
        if pair is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self._host, self._scheme = address.rpartition(":")[0], "grpcs" if pair else "grpc"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._host}:{self.port}"

    @property
    def predictions(self) -> int:
        return len(self.deadlines)

    def __enter__(self) -> GrpcEngine:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Die: calls in hand end without an answer."""
        stopped = self._server.stop(None)
        self._stopped.set()
        stopped.wait()

    def answer(self, method: str, data: bytes, context: grpc.ServicerContext) -> Any:
        self.peers.add(context.peer())
        self.said = {key: str(value) for key, value in context.invocation_metadata()}
        context.set_compression(self.compression)
        service, _, name = method.strip("/").partition("/")
        request = methods_of(service)[name][0].FromString(data)
        if name in ("Predict", "ModelInfer"):
            self.deadlines.append(context.time_remaining())
            if self.refuse_next:
                context.abort(*self.refuse_next.pop(0))
            self._stopped.wait(self.delay_s)
        answered = {
            "GetModelMetadata": self._tensorflow_metadata,
            "ModelMetadata": self._metadata,
            "Predict": self._predict,
            "ModelInfer": self._infer,
        }[name](request, context)
        answered = self.spoil(answered)
        return answered if isinstance(answered, bytes) else answered.SerializeToString()

    def _find(self, name: str, version: str, label: str, context: grpc.ServicerContext) -> ServedModel:
        model = self.models.get(name)
        if model is None or (version and version != str(model.version)):
            context.abort(_OK.NOT_FOUND, f"Servable not found for request: Specific({name}, {version})")
        if label and label not in model.labels:
            context.abort(_OK.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        return model

    def _of_spec(self, spec: Any, context: grpc.ServicerContext) -> ServedModel:
        version = str(spec.version.value) if spec.HasField("version") else ""
        return self._find(spec.name, version, spec.version_label, context)

    def _tensorflow_metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = self._of_spec(request.model_spec, context)
        known = message_class("tensorflow.serving.SignatureDefMap")()
        signature = known.signature_def["serving_default"]
        for into, tensors in ((signature.inputs, model.inputs), (signature.outputs, model.outputs)):
            for name, (dtype, shape) in tensors.items():
                into[name].dtype = DATA_TYPES[dtype]
                for size in (-1, *shape):
                    into[name].tensor_shape.dim.add(size=size)
        answer = message_class("tensorflow.serving.GetModelMetadataResponse")()
        answer.metadata["signature_def"].Pack(known)
        return answer

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = self._of_spec(request.model_spec, context)
        if request.model_spec.signature_name != "serving_default":
            context.abort(_OK.INVALID_ARGUMENT, "Serving signature key not found")
        given = {name: tensor_of(one, name) for name, one in request.inputs.items()}
        outputs = self._computed(model, given, context)
        answer = message_class("tensorflow.serving.PredictResponse")()
        for name in request.output_filter or outputs:
            write_tensor(answer.outputs[name], np.asarray(outputs[name]))
        return answer

    def _metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = self._find(request.name, request.version, "", context)
        answer = message_class("inference.ModelMetadataResponse")(name=request.name)
        for into, tensors in ((answer.inputs, model.inputs), (answer.outputs, model.outputs)):
            for name, (dtype, shape) in tensors.items():
                into.add(name=name, datatype=datatype(_DTYPES[dtype]), shape=[-1, *shape])
        return answer

    def _infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = self._find(request.model_name, request.model_version, "", context)
        given = {}
        for item, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            text = item.datatype == "BYTES"
            values = text_from_bytes(raw) if text else np.frombuffer(raw, _DTYPES[model.inputs[item.name][0]].numpy)
            given[item.name] = values.reshape(item.shape)
        outputs = self._computed(model, given, context)
        answer = message_class("inference.ModelInferResponse")(model_name=request.model_name)
        for item in request.outputs:
            values = np.asarray(outputs[item.name])
            answer.outputs.add(
                name=item.name, datatype=datatype(_DTYPES[model.outputs[item.name][0]]), shape=values.shape
            )
            raw = text_to_bytes(values) if values.dtype.kind == "O" else np.ascontiguousarray(values).tobytes()
            answer.raw_output_contents.append(raw)
        return answer

    def _computed(
        self, model: ServedModel, given: dict[str, np.ndarray], context: grpc.ServicerContext
    ) -> dict[str, np.ndarray]:
        for name, (_, shape) in model.inputs.items():
            if name not in given or given[name].shape[1:] != shape:
                context.abort(_OK.INVALID_ARGUMENT, f"input {name} must have shape {list(shape)}")
        return model.compute(**given)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, engine: GrpcEngine) -> None:
        self._engine = engine

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(lambda data, context: self._engine.answer(method, data, context))
