"""The Open Inference Protocol's GRPCInferenceService. `inference/protocols/open_inference*.py` have its rules."""

from __future__ import annotations

from typing import Any

from app.api import open_inference_extensions as extensions
from app.api.grpc_calls import Answer, GrpcCall
from app.api.grpc_streams import StreamAnswer
from app.api.health import readiness
from app.api.open_inference import described_model, held_record, inferable_record, unknown_model, version_in
from app.api.request_bodies import beside_loop
from inference.errors import BadInput, ModelUnavailable, NotFound, StoreUnavailable
from inference.protocols import open_inference as protocol
from inference.protocols import open_inference_grpc as messages
from inference.protocols.messages import message_class
from inference.protocols.open_inference_requests import infer_request_of
from inference.protocols.tensors import bytes_of
from inference.serving import ModelCall
from inference.stored_data import installed_release


async def _live(_: GrpcCall, __: Any) -> Any:
    return message_class("inference.ServerLiveResponse")(live=True)


async def _ready(client: GrpcCall, _: Any) -> Any:
    try:
        await readiness(client.process, list(client.process.settings.models))
    except (StoreUnavailable, ModelUnavailable):
        return message_class("inference.ServerReadyResponse")(ready=False)
    return message_class("inference.ServerReadyResponse")(ready=True)


async def _model_ready(client: GrpcCall, request: Any) -> Any:
    response = message_class("inference.ModelReadyResponse")
    try:
        await held_record(client.process, request.name, _version(request.version))
    except (BadInput, NotFound):
        return response(ready=False)
    return response(ready=True)


async def _server(_: GrpcCall, __: Any) -> Any:
    body = protocol.server_metadata(installed_release() or "0")
    return message_class("inference.ServerMetadataResponse")(**body)


async def _model(client: GrpcCall, request: Any) -> Any:
    return messages.metadata_response(await described_model(client.process, request.name, _version(request.version)))


async def _infer(client: GrpcCall, request: Any) -> Any:
    model, version = request.model_name, _version(request.model_version)
    record = await inferable_record(client.process, model, version)
    size = request.ByteSize()
    # raw contents cost nothing; elements and texts are converted one by one
    document, contents = await beside_loop(0 if request.raw_input_contents else size, messages.infer_document, request)
    asked = await beside_loop(size, infer_request_of, model, document, contents, record.signature)
    try:
        outputs = await client.ask(model, asked.tensors, ModelCall(version), asked.timeout_s)
    except NotFound as error:
        raise unknown_model(model, version) from error
    size = bytes_of(outputs.tensors) if asked.classes else 0
    labels = record.class_labels
    return await beside_loop(size, messages.infer_response, model, outputs.version, asked, outputs.tensors, labels)


async def _stream_infer(client: GrpcCall, request: Any) -> Any:
    response = message_class("inference.ModelStreamInferResponse")(infer_response=await _infer(client, request))
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


def _stream_error(request: Any, message: str) -> Any:
    """Return the response to a message of a stream that cannot be answered. Triton's names its request, too."""
    named = {"id": request.id, "model_name": request.model_name} if request is not None else {}
    return message_class("inference.ModelStreamInferResponse")(error_message=message, infer_response=named)


async def _config(client: GrpcCall, request: Any) -> Any:
    body = await extensions.configuration(client.process, request.name, _version(request.version))
    return message_class("inference.ModelConfigResponse")(config=body)


async def _statistics(client: GrpcCall, request: Any) -> Any:
    body = await extensions.statistics(client.process, request.name or None, _version(request.version))
    return message_class("inference.ModelStatisticsResponse")(**body)


async def _index(client: GrpcCall, request: Any) -> Any:
    models = await extensions.repository_index(client.process, ready=request.ready)
    return message_class("inference.RepositoryIndexResponse")(models=models)


async def _load(_: GrpcCall, request: Any) -> Any:
    raise extensions.no_control(request.model_name, load=True)


async def _unload(_: GrpcCall, request: Any) -> Any:
    raise extensions.no_control(request.model_name, load=False)


def _version(text: str) -> int | None:
    return version_in(text) if text else None


_SERVICE = "inference.GRPCInferenceService"

#: service → its methods
SERVICES: dict[str, dict[str, Answer]] = {
    _SERVICE: {
        "ServerLive": _live,
        "ServerReady": _ready,
        "ModelReady": _model_ready,
        "ServerMetadata": _server,
        "ModelMetadata": _model,
        "ModelInfer": _infer,
        "ModelConfig": _config,
        "ModelStatistics": _statistics,
        "RepositoryIndex": _index,
        "RepositoryModelLoad": _load,
        "RepositoryModelUnload": _unload,
    }
}
#: service → its methods that answer each message of a stream
STREAMS: dict[str, dict[str, StreamAnswer]] = {
    _SERVICE: {"ModelStreamInfer": StreamAnswer(_stream_infer, _stream_error)}
}
#: service → methods that are missing here → the extension that they belong to
MISSING: dict[str, dict[str, str]] = {
    _SERVICE: {
        **{f"SystemSharedMemory{verb}": "system shared memory" for verb in ("Status", "Register", "Unregister")},
        **{f"CudaSharedMemory{verb}": "CUDA shared memory" for verb in ("Status", "Register", "Unregister")},
        "TraceSetting": "trace",
        "LogSettings": "logging",
    }
}
