"""Every error as a problem document (RFC 9457): what is wrong, which field, and nothing of our insides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.dialects import respond_with_error, speaks_protocol
from app.api.paths import without_folders
from app.api.validation import as_bad_input
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

MEDIA_TYPE = "application/problem+json"
#: seconds after which an outage is worth another try, when nobody knows better
RETRY_AFTER_S = 1.0

#: our own trouble in words of our own: the error's may hold an address, or the insides of a model
_OWN_WORDS: dict[type[ForecacheError], str] = {
    PredictionFailed: "the model gave no usable prediction for this input",
    FunctionFailed: "a function of the model's features failed on this input; the worker's log says why",
    ModelOutOfMemory: "the model ran out of memory on this input: send fewer rows",
    StoreUnavailable: "the cache Redis does not answer",
    BrokerUnavailable: "the broker does not answer",
    FeaturesUnavailable: "a source of this entity's features does not answer",
}
#: of all routes
defects = Failures("app.api", "request")
_DEFECT = "the server failed on this request; its log says why"
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
    """An error by RFC 9457. `code` is the word to branch on, `field` what is at fault (if one thing is).

    `request_id`: by which the log's lines of this request are found.
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
    return _problem(status_of(error), error.code, _words_of(error), error.field)


def _words_of(error: ForecacheError) -> str:
    return _OWN_WORDS.get(type(error), error.message)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route that may answer with these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def add_problem_handlers(app: FastAPI) -> None:
    """Have the application answer every error as a problem document."""
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
    # ASCII only: a detail may quote text that is no valid Unicode
    body = json.dumps(named)
    return Response(body, document["status"], headers=headers, media_type=MEDIA_TYPE)


def respond_to_error(error: ForecacheError, path: str = "") -> Response:
    """Return the response to an error of ours, in the words of the protocol that the path belongs to."""
    if speaks_protocol(path):
        # both protocols tell a deadline from an outage
        status = 504 if isinstance(error, DeadlineExceeded) else status_of(error)
        return respond_with_error(status, _words_of(error), _headers_of(error))
    return _respond(problem_of(error), _headers_of(error))


def _headers_of(error: ForecacheError) -> dict[str, str] | None:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, UnsupportedMedia):
        return {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
    if isinstance(error, Unavailable | RateLimited):
        # whole seconds are all that the header can say (RFC 9110)
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))}
    return None


def respond_to_status(status: int, detail: str, path: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return the response to a refusal that is no error of ours, in the words of the path's protocol."""
    if speaks_protocol(path):
        return respond_with_error(status, detail, headers)
    return _respond(_problem(status, _CODES.get(status, "bad-input"), detail), dict(headers or {}))


def respond_to_defect() -> Response:
    """Return the response to a failure of our own, whose cause belongs into the log."""
    return _respond(_problem(500, "internal", _DEFECT))


async def _on_forecache_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForecacheError)  # noqa: S101 - tells mypy what the registration says
    if speaks_protocol(request.scope["path"]):
        return respond_to_error(error, request.scope["path"])
    # what is wrong with a source or a run is told with paths of this machine
    document = without_folders(problem_of(error), request.app.state.parts.settings)
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
        return respond_with_error(500, _DEFECT)
    return respond_to_defect()
