"""`/v1/models/…`: TensorFlow Serving's REST protocol. `inference/protocols/tensorflow_*.py` have its rules."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.api.models import compute
from app.api.problems import documented_errors, respond_to_options
from app.api.process import ApiProcess
from app.api.request_bodies import beside_loop, read_body
from app.api.servables import compute_signature, ready_record, signature_call, version_states, without_label
from inference.protocols import tensorflow_calls as calls
from inference.protocols import tensorflow_examples as examples_protocol
from inference.protocols import tensorflow_serving as protocol
from inference.protocols.tensorflow_calls import SignatureCall
from inference.protocols.tensorflow_serving import Method, ModelUrl
from inference.protocols.tensors import bytes_of, render
from inference.schema import Block


class TensorFlowServingApi:
    """Answers every request under `/v1/`, with any HTTP method: the protocol has its own error for unknown ones."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        if request.method == "OPTIONS" and (allowed := protocol.methods_of(scope["path"])):
            await respond_to_options(allowed)(scope, receive, send)
            return
        response = await _respond(request, request.app.process)
        await response(scope, receive, send)


def route() -> Route:
    """Return the route for all paths under `/v1/`."""
    return Route("/v1/{rest:path}", TensorFlowServingApi())


async def _respond(request: Request, process: ApiProcess) -> Response:
    path = await without_label(protocol.parse_path(request.method, request.scope["path"]), process)
    match path.method:
        case Method.PREDICT:
            return await _predict(request, path, process)
        case Method.CLASSIFY | Method.REGRESS:
            return await _examples(request, path, process)
        case Method.METADATA:
            record = await ready_record(path, process)
            body = protocol.metadata(path.model, record.version, record.all_signatures())
        case Method.STATUS:
            body = protocol.status(await version_states(path, process))
    return _json(render(body))


async def _predict(request: Request, path: ModelUrl, process: ApiProcess) -> Response:
    document, size = await _document(request)
    call = await signature_call(path, process, protocol.signature_of(document), protocol.unknown_signature)
    tensors, by_row = await beside_loop(size, protocol.tensors_of, document, call.declared.inputs)
    protocol.check_types(call.declared.outputs)
    outputs = await _compute(request, path, process, call, tensors)
    if outputs is None:
        return _gone()
    return _json(await beside_loop(bytes_of(outputs), protocol.predict_answer, outputs, by_row=by_row))


async def _examples(request: Request, path: ModelUrl, process: ApiProcess) -> Response:
    document, size = await _document(request)
    name = protocol.signature_of(document)
    examples = await beside_loop(size, examples_protocol.read_examples, document)
    call = await signature_call(path, process, name, examples_protocol.unknown_signature)
    classify = path.method is Method.CLASSIFY
    (calls.check_classify if classify else calls.check_regress)(call.declared)
    outputs = await _compute(request, path, process, call, calls.example_tensors(examples))
    if outputs is None:
        return _gone()
    answer = examples_protocol.classify_answer if classify else examples_protocol.regress_answer
    return _json(await beside_loop(bytes_of(outputs), answer, outputs, len(examples)))


async def _document(request: Request) -> tuple[dict[str, Any], int]:
    """Return the JSON object of a request, and its size in bytes."""
    body = await read_body(request)
    return await beside_loop(len(body), protocol.read_document, body), len(body)


async def _compute(
    request: Request, path: ModelUrl, process: ApiProcess, call: SignatureCall, tensors: Block
) -> Block | None:
    """Return the outputs; None if the client has hung up meanwhile."""
    outputs = await compute_signature(path, call, tensors, partial(compute, request, process.service))
    return None if outputs is None else outputs.tensors


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _gone() -> Response:
    return Response(status_code=499)


def openapi_paths() -> dict[str, Any]:
    """Return these routes' entries in the OpenAPI document."""
    paths: dict[str, Any] = {}
    for suffix in ("", "/versions/{version}", "/labels/{label}"):
        base = f"/v1/models/{{model}}{suffix}"
        for method in (Method.PREDICT, Method.CLASSIFY, Method.REGRESS):
            paths[f"{base}:{method}"] = {"post": _call_operation(method, suffix)}
        for method, end in ((Method.STATUS, ""), (Method.METADATA, "/metadata")):
            paths[f"{base}{end}"] = {"get": _operation(method, suffix, _LOOKS[method], 400, 404, 503)}
    return paths


#: end of a path → schema of its parameter
_NAMED: dict[str, dict[str, Any]] = {
    "/versions/{version}": {"type": "integer", "minimum": 0},
    "/labels/{label}": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
}
_ENDINGS = {"": "", "/versions/{version}": "_version", "/labels/{label}": "_label"}

_LOOKS = {
    Method.STATUS: "Return whether versions are available.",
    Method.METADATA: "Return the inputs and outputs of a version.",
}
_CALLS: dict[Method, tuple[str, dict[str, Any]]] = {
    Method.PREDICT: (
        "Return the model's outputs for input tensors, as rows (`instances`) or columns (`inputs`).",
        {"signature_name": {"type": "string"}, "instances": {"type": "array", "minItems": 1}, "inputs": {}},
    ),
    Method.CLASSIFY: ("Return labels and scores of examples.", {}),
    Method.REGRESS: ("Return a number for each example.", {}),
}
_EXAMPLES: dict[str, Any] = {
    "signature_name": {"type": "string"},
    "context": {"type": "object"},
    "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
}


def _call_operation(method: Method, suffix: str) -> dict[str, Any]:
    description, properties = _CALLS[method]
    schema = {"type": "object", "properties": properties or _EXAMPLES}
    operation = _operation(method, suffix, description, 400, 404, 413, 500, 503, 504)
    return operation | {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _operation(method: Method, suffix: str, description: str, *errors: int) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}}
    ]
    if suffix:
        parameters.append({"name": suffix.split("{")[1][:-1], "in": "path", "required": True, "schema": _NAMED[suffix]})
    return {
        "tags": ["TensorFlow Serving"],
        "summary": method.value.capitalize(),
        "description": description,
        "operationId": f"v1_{method.value}{_ENDINGS[suffix]}",
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}},
            **{str(status): response for status, response in documented_errors(*errors).items()},
        },
    }
