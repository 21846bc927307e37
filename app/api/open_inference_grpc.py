"""The Open Inference Protocol's GRPCInferenceService. `inference/protocols/open_inference*.py` have its rules."""

from __future__ import annotations

from typing import Any

from app.api.grpc_calls import Answer, GrpcCall
from app.api.health import readiness
from app.api.open_inference import described_model, held_record, inferable_record, unknown_model, version_in
from app.api.request_bodies import beside_loop
from inference.errors import BadInput, NotFound, Unavailable
from inference.protocols import open_inference as protocol
from inference.protocols import open_inference_grpc as messages
from inference.protocols.messages import message_class
from inference.serving import ModelCall
from inference.stored_data import installed_release


async def _live(_: GrpcCall, __: Any) -> Any:
    return message_class("inference.ServerLiveResponse")(live=True)


async def _ready(client: GrpcCall, _: Any) -> Any:
    try:
        await readiness(client.process, list(client.process.settings.models))
    except Unavailable:
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
    return message_class("inference.ServerMetadataResponse")(**body | {"extensions": []})


async def _model(client: GrpcCall, request: Any) -> Any:
    return messages.metadata_response(await described_model(client.process, request.name, _version(request.version)))


async def _infer(client: GrpcCall, request: Any) -> Any:
    model, version = request.model_name, _version(request.model_version)
    record = await inferable_record(client.process, model, version)
    # raw contents cost nothing; elements and texts are converted one by one
    size = 0 if request.raw_input_contents else request.ByteSize()
    document, binary = await beside_loop(size, messages.infer_document, request)
    asked = await beside_loop(len(binary), protocol.infer_request, model, document, binary, record.signature)
    try:
        outputs = await client.ask(model, asked.tensors, ModelCall(version))
    except NotFound as error:
        raise unknown_model(model, version) from error
    return messages.infer_response(model, outputs.version, asked, outputs.tensors)


def _version(text: str) -> int | None:
    return version_in(text) if text else None


#: service → its methods
SERVICES: dict[str, dict[str, Answer]] = {
    "inference.GRPCInferenceService": {
        "ServerLive": _live,
        "ServerReady": _ready,
        "ModelReady": _model_ready,
        "ServerMetadata": _server,
        "ModelMetadata": _model,
        "ModelInfer": _infer,
    }
}
