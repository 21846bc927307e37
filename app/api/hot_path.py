"""`GET /predict/{entity_id}`, the one request that has to be fast: plain ASGI beside FastAPI.

FastAPI's routing, dependencies and validation cost several times the look-up. This module does the same by hand: the
same checks, the same problem documents, the same counting.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import copy_context
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import Response
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.api.access import AccessControl
from app.api.problems import defects, documented, respond_to_defect, respond_to_error
from app.api.requests import (
    HOT_PREFIX,
    SPAN,
    ClientWatch,
    as_bad_input,
    begin_request,
    check_query,
    end_span,
    entity_id_of,
    header_of,
    headers_of_others,
    with_request_id,
)
from app.api.schemas import ENTITY_ID_SCHEMA, ExplainableTerms, ExplainedBody
from inference import tracing
from inference.entities import check_entity_id
from inference.errors import ForecacheError
from inference.logs import RequestId
from inference.serving import Answer, PredictionService
from inference.serving.service import Request

PREFIX = HOT_PREFIX
CONTENT_TYPE = (b"content-type", b"application/json")
_PARAMETERS = frozenset(ExplainableTerms.model_fields)
_PLAIN_TARGET = re.compile(rb"GET (/predict/[\w.:~-]{1,512})")
#: first line of a request for an id of plain characters: path and query
_PLAIN_LINE = re.compile(_PLAIN_TARGET.pattern + rb"(?:\?[\w.:~=&-]{0,512})? HTTP/1\.1\r\n")
#: key in the scope: the server leaves a request there that it has already begun
BEGUN = "forecache.begun"


def is_hot(scope: Scope) -> bool:
    """Return whether this module answers the request."""
    return bool(scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(PREFIX))


def has_any(scope: Scope, headers: frozenset[bytes]) -> bool:
    """Return whether the request has any of these headers."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - `any` of a generator takes twice the time
        if name in headers:
            return True
    return False


def tail_of(data: bytes) -> bytes:
    """Return all of a request behind its path, to recognise the next one by `repeated_target`.

    Empty if it is more or less than one head, or has unusual characters in its id or query.
    """
    line = _PLAIN_LINE.match(data)
    return data[line.end(1) :] if line and data.find(b"\r\n\r\n") == len(data) - 4 else b""


def repeated_target(data: bytes, tail: bytes) -> bytes:
    """Return the target of a request that equals an earlier one but for its id; empty if it does not.

    `tail`: `tail_of` the earlier one, and not empty.
    """
    found = data.endswith(tail) and _PLAIN_TARGET.fullmatch(data, 0, len(data) - len(tail))
    return found[1] if found else b""


class HotRequest:
    """Answers one request; only one that waits for a worker needs a coroutine.

    Call `begin`, then `answer` after the look-up, then `finish` if there is neither `body` nor `error`, or if they are
    to be sent as an ASGI application does.
    """

    __slots__ = ("_access", "_explain", "_request", "_scope", "_service", "began_ns", "body", "error", "write")

    def __init__(self, service: PredictionService, access: AccessControl, scope: Scope) -> None:
        self._service = service
        self._access = access
        self._scope = scope
        self._request: Request | None = None
        self._explain = False
        #: the answer: the body of a prediction, or an error; None while there is none
        self.body: bytes | None = None
        self.error: Exception | None = None
        #: writes a body with its head at once; returns False if it cannot. None on a server that is not ours
        self.write: Callable[[bytes], bool] | None = None
        #: when it began, in epoch nanoseconds, if it may be recorded
        self.began_ns = 0

    def begin(self, tell: Callable[[], None]) -> bool:
        """Check the request and begin its look-up. Return False if it is refused; `error` says why.

        `tell`: called once when the look-up ends, never within this call.
        """
        scope = self._scope
        try:
            self._access.check(scope)
            entity_id = check_entity_id(entity_id_of(scope, PREFIX))
            raw_query = scope["query_string"]
            model, max_staleness_s, timeout_s, explain = _terms(raw_query) if raw_query else (None, None, None, None)
            self._explain = explain is not None
            self._request = self._service.look_up(
                model, (entity_id,), tell, max_staleness_s=max_staleness_s, timeout_s=timeout_s
            )
        except Exception as error:  # noqa: BLE001 - the response tells it, whatever it is
            self.error = error
            return False
        return True

    def answer(self) -> None:
        """Set `body` or `error` after the look-up, unless a worker has to compute the answer."""
        if self._request is None or self._explain:
            return
        try:
            answers = self._service.hits(self._request) or self._service.answers_at_once(self._request)
            if answers is not None:
                self.body = _body_of(answers[0])
        except Exception as error:  # noqa: BLE001 - see above
            self.error = error

    def refusal(self) -> Response:
        """Return the response to `error`, with all of its headers, for a request that has no task."""
        # in a context of its own: the look-up that is shared with others must not be for this request
        return copy_context().run(self._refusal)

    def _refusal(self) -> Response:
        self._scope[SPAN] = None  # the server records it
        request = begin_request(self._scope)
        response = self._response()
        response.raw_headers.extend(headers_of_others(request))
        return response

    async def finish(self, scope: Scope, receive: Receive, send: Send, request: RequestId) -> None:
        """Send the answer: from the store, computed within the budget, or an error."""
        with ClientWatch(receive) as client:
            await self._complete()
        if client.gone:
            return
        body = self.body
        if body is None:
            await self._response()(scope, receive, with_request_id(send, request))
            return
        if self.write is not None and self.write(body):
            end_span(scope, 200)
            return
        headers = [CONTENT_TYPE, (b"content-length", b"%d" % len(body))]
        if request.is_named:
            headers.append(header_of(request))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _complete(self) -> None:
        """Set `body` or `error` if neither is set: have the answer computed, or the features explained."""
        if self.body is not None or self.error is not None:
            return
        assert self._request is not None  # noqa: S101 - tells mypy what `begin` promises
        try:
            if self._explain:
                explained, explanation = await self._service.explain(self._request)
                self.body = b'%b,"explanation":%b}' % (explained.to_json_text()[:-1], orjson.dumps(explanation))
            else:
                [answer] = await self._service.complete(self._request)
                self.body = _body_of(answer)
        except Exception as error:  # noqa: BLE001 - the response tells it, whatever it is
            self.error = error

    def _response(self) -> Response:
        """Return the response to `error`."""
        error = self.error
        if isinstance(error, ForecacheError):
            return respond_to_error(error)
        if isinstance(error, ValidationError):
            return respond_to_error(as_bad_input(error.errors(include_url=False)))
        assert error is not None  # noqa: S101 - tells mypy what `finish` promises
        defects.tell_each(error)
        return respond_to_defect()


def _body_of(answer: Answer | ForecacheError) -> bytes:
    if isinstance(answer, ForecacheError):
        raise answer
    return answer.to_json_text()


async def predict_one(
    service: PredictionService, access: AccessControl, scope: Scope, receive: Receive, send: Send, request: RequestId
) -> None:
    """Send one entity's prediction: the stored one if it is fresh, otherwise one computed within the budget."""
    hot: HotRequest | None = scope.pop(BEGUN, None)
    if hot is None:
        over = asyncio.Event()
        hot = HotRequest(service, access, scope)
        if hot.begin(tracing.look_up_span(over.set)):
            await over.wait()
            hot.answer()
    await hot.finish(scope, receive, send, request)


@lru_cache(maxsize=64)  # clients repeat their queries: parsing one takes as long as a look-up
def _terms(raw_query: bytes) -> tuple[str | None, float | None, float | None, str | None]:
    sent = parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True)
    found = dict(sent)
    if len(found) < len(sent) or not found.keys() <= _PARAMETERS:
        check_query(sent, _PARAMETERS)
    terms = ExplainableTerms.model_validate(found)
    return terms.model, terms.max_staleness_s, terms.timeout_s, terms.explain


def openapi_operation() -> dict[str, Any]:
    """Return this route's entry in the OpenAPI document."""
    properties = ExplainableTerms.model_json_schema()["properties"]
    path = {"name": "entity_id", "in": "path", "required": True, "schema": ENTITY_ID_SCHEMA}
    query = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ExplainedBody.__name__}"}}}
    return {
        "tags": ["predict"],
        "summary": "Predict",
        "description": "Return one entity's prediction: stored if it is fresh, else computed within the budget.",
        "operationId": "predict",
        "parameters": [path, *query],
        "responses": {
            "200": {"description": "OK", "content": content},
            **{str(status): response for status, response in documented(400, 404, 500, 503).items()},
        },
    }
