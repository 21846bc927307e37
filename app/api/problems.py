"""Turns every error into a response: a problem document (RFC 9457), or an error of the path's serving protocol.

It says what is wrong and which field, and nothing of the server's insides: no folder, address or traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.requests import as_bad_input
from app.http import status_of
from inference.errors import (
    BrokerUnavailable,
    DeadlineExceeded,
    FeaturesUnavailable,
    ForecacheError,
    FunctionFailed,
    ModelOutOfMemory,
    PredictionFailed,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from inference.failures import Failures
from inference.logs import requests_behind
from inference.settings import Settings
from inference.sources import fixed_part
from inference.storage import is_uri

MEDIA_TYPE = "application/problem+json"
#: name of the schema of a serving protocol's error in the OpenAPI document
ERROR_SCHEMA = "ProtocolError"
#: when to try again after an outage, if the error does not say
RETRY_AFTER_S = 1.0

#: texts that replace an error's own, which may hold an address or the insides of a model
_OWN_WORDS: dict[type[ForecacheError], str] = {
    PredictionFailed: "the model gave no usable prediction for this input",
    FunctionFailed: "a function of the model's features failed on this input; the worker's log says why",
    ModelOutOfMemory: "the model ran out of memory on this input: send fewer rows",
    StoreUnavailable: "the cache Redis does not answer",
    BrokerUnavailable: "the broker does not answer",
    FeaturesUnavailable: "a source of this entity's features does not answer",
}
#: start of a message of the parser → how to fix the request
_FIXES = {
    "Invalid char in url": "percent-encode what is not ASCII in a path or query",
    "Expected HTTP/": "a blank in a path is written %20",
    "Invalid method": "this port speaks plain HTTP/1.1, without TLS",
    "Pause on PRI": "this port speaks HTTP/1.1, not HTTP/2",
}
#: logs the defects of all routes
defects = Failures("app.api", "request")
#: the text for a client when the server has a defect
DEFECT = "the server failed on this request; its log says why"
_CODES = {
    404: "not-found",
    405: "method-not-allowed",
    408: "request-timeout",
    413: "body-too-large",
    414: "url-too-long",
    431: "headers-too-large",
    500: "internal",
}


class Problem(BaseModel):
    """An error by RFC 9457. Branch on `code`. `field` names the wrong field, if it is only one.

    `request_id`: find the log lines of this request by it.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    request_id: str | None = None


def problem_of(error: ForecacheError) -> dict[str, Any]:
    """Return an error as a problem document."""
    return _problem(status_of(error), error.code, words_of(error), error.field)


def words_of(error: ForecacheError) -> str:
    """Return the text of an error for clients, without addresses and a model's insides."""
    return _OWN_WORDS.get(type(error), error.message)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that may answer with these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def add_problem_handlers(app: FastAPI) -> None:
    """Make the application answer every error."""
    app.add_exception_handler(ForecacheError, _on_forecache_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_defect)


def _problem(status: int, code: str, detail: str, field: str | None = None) -> dict[str, Any]:
    document = {
        "type": f"urn:forecache:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return document if field is None else {**document, "field": field}


def _respond(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    requests = requests_behind()
    named = {**document, "request_id": str(requests[0])} if requests else document
    # ASCII only: a detail may quote text that is not valid Unicode
    body = json.dumps(named)
    return Response(body, document["status"], headers=headers, media_type=MEDIA_TYPE)


def respond_to_error(error: ForecacheError, path: str = "") -> Response:
    """Return the response to an error of ours, in the form of the path's protocol."""
    if speaks_protocol(path):
        # both protocols distinguish a deadline from an outage
        status = 504 if isinstance(error, DeadlineExceeded) else status_of(error)
        return respond_with_error(status, words_of(error), _headers_of(error))
    return _respond(problem_of(error), _headers_of(error))


def _headers_of(error: ForecacheError) -> dict[str, str] | None:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, UnsupportedMedia):
        return {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
    if isinstance(error, Unavailable | RateLimited):
        # the header can only hold whole seconds (RFC 9110)
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))}
    return None


def respond_to_status(status: int, detail: str, path: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for a status, in the form of the path's protocol."""
    if speaks_protocol(path):
        return respond_with_error(status, detail, headers)
    return _respond(_problem(status, _CODES.get(status, "bad-input"), detail), dict(headers or {}))


def respond_to_other_protocol(parser_says: str, path: str) -> Response:
    """Return the response to bytes that are no HTTP/1.1, with the fix if the cause is a usual one."""
    reason = "; ".join([parser_says, *(fix for start, fix in _FIXES.items() if parser_says.startswith(start))])
    return respond_to_status(400, f"this is no HTTP/1.1 request: {reason}", path)


def respond_to_options(allowed: tuple[str, ...]) -> Response:
    """Return the response to OPTIONS on a path that allows these methods."""
    head = ("HEAD",) if "GET" in allowed else ()
    return Response(status_code=204, headers={"Allow": ", ".join((*allowed, *head, "OPTIONS"))})


def respond_to_defect() -> Response:
    """Return the response to a defect of the server; only the log has its cause."""
    return _respond(_problem(500, "internal", DEFECT))


async def _on_forecache_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForecacheError)  # noqa: S101 - tells mypy what the registration says
    if speaks_protocol(request.scope["path"]):
        return respond_to_error(error, request.scope["path"])
    # errors of sources and runs hold paths of this machine
    document = without_folders(problem_of(error), request.app.process.settings)
    return _respond(document, _headers_of(error))


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - see above
    return respond_to_error(as_bad_input(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - see above
    return respond_to_status(error.status_code, str(error.detail), request.scope["path"], error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # nobody reads it
    return Response(status_code=499)


async def _on_defect(request: Request, _: Exception) -> Response:
    # `Application` logs the exception itself
    if speaks_protocol(request.scope["path"]):
        return respond_with_error(500, DEFECT)
    return respond_to_defect()


def speaks_protocol(path: str) -> bool:
    """Return whether a path belongs to a serving protocol, which has errors of its own."""
    return path.startswith(("/v1/", "/v2/")) or path == "/v2"


def respond_with_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response to an error, in the form of both serving protocols."""
    # ASCII only: the message may quote text that is not valid Unicode
    return Response(json.dumps({"error": message}), status, headers=dict(headers or {}), media_type="application/json")


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a serving protocol's operation that may answer with these errors."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ERROR_SCHEMA}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def error_schema() -> dict[str, Any]:
    """Return the OpenAPI schema of a serving protocol's error."""
    return {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def without_folders(value: Any, settings: Settings) -> Any:
    """Return a text, or JSON that holds texts, with paths relative to the deployment or to a configured folder.

    In a deployment in `/srv/shop`, `/srv/shop/data/users.parquet` becomes `data/users.parquet`. If a table elsewhere is
    configured as `/data/users`, `/data/users/part-0.parquet` becomes `users/part-0.parquet`. URIs stay.
    """
    if isinstance(value, str):
        for folder in _folders(settings):
            value = value.replace(f"{folder}/", "")
        return value
    if isinstance(value, dict):
        return {name: without_folders(item, settings) for name, item in value.items()}
    return [without_folders(item, settings) for item in value] if isinstance(value, list) else value


def _folders(settings: Settings) -> list[Path]:
    """Return the folders that clients must not see, longest first; not `/`, which every path begins with."""
    folders = {settings.root}
    for model in settings.models.values():
        for path in (str(model.path), model.features, model.batch.parquet_path, model.batch.quarantine_path):
            if path and not is_uri(path) and Path(path).is_absolute():
                folders.add(Path(fixed_part(path)).parent)
    return sorted((folder for folder in folders if folder != Path("/")), key=lambda folder: -len(str(folder)))
