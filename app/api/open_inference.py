"""`/v2/…`: routes of the Open Inference Protocol. `inference/protocols/open_inference.py` has its rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.api.health import readiness
from app.api.models import compute
from app.api.problems import documented_errors
from app.api.process import ApiProcess, Process
from app.api.request_bodies import beside_loop, operation_id, read_body
from inference.errors import BadInput, NotFound, Unsupported, cut
from inference.models import VersionRecord
from inference.protocols import open_inference as protocol
from inference.protocols.open_inference_requests import infer_request
from inference.protocols.open_inference_requests import read_body as read_infer_body
from inference.protocols.tensors import MOST_VERSION, bytes_of, render, whole_number
from inference.serving import ModelCall
from inference.stored_data import installed_release

#: bytes of JSON in a body, in front of binary tensors
LENGTH_HEADER = "Inference-Header-Content-Length"
#: format of a model → the protocol's platform: project and format
_PLATFORMS = {
    "saved_model": "tensorflow_savedmodel",
    "keras": "keras_keras",
    "torch_export": "pytorch_export",
    "onnx": "onnxruntime_onnx",
    "skops": "sklearn_skops",
    "pickle": "sklearn_pickle",
}


async def version_in_path(request: Request) -> int | None:
    """Return the version in the path; None if there is none."""
    version: str | None = request.path_params.get("version")
    return None if version is None else version_in(version)


def version_in(version: str) -> int:
    """Return the version number in a text.

    Raises:
        BadInput: it is none.
    """
    number = whole_number(version, MOST_VERSION)
    if not number:
        raise BadInput(f"failed to get model version from specified version string '{cut(version)}'")
    return number


#: type of a route's parameter: the version in its path
VersionInPath = Annotated[int | None, Depends(version_in_path)]
_IN_PATH = {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
VERSIONED: dict[str, Any] = {"parameters": [_IN_PATH]}

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], generate_unique_id_function=operation_id)

_MODEL = "/models/{model}"
_VERSION = f"{_MODEL}/versions/{{version}}"
#: extension of Triton that is missing here → its paths; without this, other routes would take some of them
_EXTENSIONS = {
    "trace": ("/trace/setting", f"{_MODEL}/trace/setting"),
    "logging": ("/logging",),
    "shared memory": ("/systemsharedmemory/{rest:path}", "/cudasharedmemory/{rest:path}"),
    "generate": tuple(f"{one}/{verb}" for one in (_MODEL, _VERSION) for verb in ("generate", "generate_stream")),
}


def _refuse_extensions() -> None:
    for extension, paths in _EXTENSIONS.items():
        for path in paths:
            router.add_api_route(path, _refusal_of(extension), methods=["GET", "POST"], include_in_schema=False)


def _refusal_of(extension: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise unsupported(extension)

    return refuse


def unsupported(extension: str) -> Unsupported:
    """Return the error for an extension of Triton that is missing here."""
    return Unsupported(f"the {extension} extension is not supported")


_refuse_extensions()


@router.get("/health/live")
async def server_live() -> Response:
    """Answer as long as the process lives."""
    return json_response({"live": True})


@router.get("/health/ready", responses=documented_errors(503))
async def server_ready(process: Process) -> Response:
    """Answer 200 once every model serves, refused ones aside, and from then on as long as the store answers."""
    await readiness(process, list(process.settings.models))
    return json_response({"live": True, "ready": True})


@router.get("")
async def server() -> Response:
    """Return the server's name, version and extensions."""
    return json_response(protocol.server_metadata(installed_release() or "0"))


@router.get("/models/{model}", responses=documented_errors(400, 404, 503))
@router.get("/models/{model}/versions/{version}", responses=documented_errors(400, 404, 503), openapi_extra=VERSIONED)
async def model_metadata(process: Process, model: str, version: VersionInPath) -> Response:
    """Return the inputs and outputs of a model."""
    return json_response(await described_model(process, model, version))


@router.get("/models/{model}/ready", responses=documented_errors(400, 404, 503))
@router.get(
    "/models/{model}/versions/{version}/ready", responses=documented_errors(400, 404, 503), openapi_extra=VERSIONED
)
async def model_ready(process: Process, model: str, version: VersionInPath) -> Response:
    """Answer 200 if a worker holds the model, or the version in the path."""
    record = await held_record(process, model, version)
    return json_response({"name": model, "version": str(record.version), "ready": True})


_INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": {"type": "object"}},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            }
        },
    },
    "parameters": [{"name": LENGTH_HEADER, "in": "header", "required": False, "schema": {"type": "integer"}}],
}
_INFER_VERSIONED = _INFER | {"parameters": [_IN_PATH, *_INFER["parameters"]]}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "application/octet-stream": {}}},
    **documented_errors(400, 404, 413, 500, 503, 504),
}


@router.post("/models/{model}/infer", responses=_ANSWERS, openapi_extra=_INFER)
@router.post("/models/{model}/versions/{version}/infer", responses=_ANSWERS, openapi_extra=_INFER_VERSIONED)
async def infer(request: Request, process: Process, model: str, version: VersionInPath) -> Response:
    """Return the model's outputs for input tensors, as JSON or, if the request wants it, as bytes behind it."""
    body = await read_body(request)
    size = len(body)
    document, binary = await beside_loop(size, read_infer_body, body, request.headers.get(LENGTH_HEADER))
    record = await inferable_record(process, model, version)
    asked = await beside_loop(size, infer_request, model, document, binary, record.signature)
    try:
        outputs = await compute(request, process.service, model, asked.tensors, ModelCall(version), asked.timeout_s)
    except NotFound as error:
        raise unknown_model(model, version) from error
    if outputs is None:
        return Response(status_code=499)
    size = bytes_of(outputs.tensors)
    labels = record.class_labels
    answer = await beside_loop(size, protocol.infer_answer, model, outputs.version, asked, outputs.tensors, labels)
    if answer.json_length is None:
        return Response(answer.body, media_type="application/json")
    return Response(
        answer.body, headers={LENGTH_HEADER: str(answer.json_length)}, media_type="application/octet-stream"
    )


async def inferable_record(process: ApiProcess, model: str, version: int | None) -> VersionRecord:
    """Return the record of a version that computes rows; `version` None: the active one.

    Raises:
        NotFound: there is no such model or version, or no active version yet.
        BadInput: it computes no rows.
    """
    try:
        record = (await process.cards.of(model)).ready(version)
    except NotFound as error:
        raise unknown_model(model, None) from error
    if record is None:
        raise unknown_model(model, version)
    if not record.computes_rows:
        raise BadInput(f"model '{model}' computes no rows: call its signatures under /v1")
    return record


def unknown_model(model: str, version: int | None) -> NotFound:
    """Return the error for a model or version that does not exist."""
    which = f"'{cut(model)}'" if version is None else f"'{cut(model)}' version {version}"
    return NotFound(f"Request for unknown model: {which} is not found")


async def held_record(process: ApiProcess, model: str, version: int | None) -> VersionRecord:
    """Return the record of a version that a live worker holds.

    Raises:
        NotFound, BadInput: as `inferable_record` says.
        BadInput: no worker holds it.
    """
    record = await inferable_record(process, model, version)
    if record.version not in await process.held_versions(model, await process.cards.of(model)):
        raise BadInput(f"model '{model}' version {record.version} is not ready: no worker holds it")
    return record


async def described_model(process: ApiProcess, model: str, version: int | None) -> dict[str, Any]:
    """Return the body that describes the tensors of a model, or of one version.

    Raises:
        NotFound, BadInput: as `inferable_record` says.
    """
    record = await inferable_record(process, model, version)
    versions = await ready_versions(process, model) if version is None else [version]
    return protocol.model_metadata(model, versions, platform_of(record), record.signature)


async def ready_versions(process: ApiProcess, model: str) -> list[int]:
    """Return the versions of a model that may answer, in order.

    Raises:
        NotFound: there is no such model.
    """
    try:
        card = await process.cards.of(model)
    except NotFound as error:
        raise unknown_model(model, None) from error
    return [version for version, record in sorted(card.versions.items()) if record.state == "ready"]


def platform_of(record: VersionRecord) -> str:
    """Return the protocol's name of what computes a version."""
    return _PLATFORMS.get(record.format, "forecache_remote")


def json_response(body: Any) -> Response:
    """Return a response of this protocol."""
    return Response(render(body), media_type="application/json")
