"""`GET /predict/{entity_id}`, the one request that has to be fast: plain ASGI beside FastAPI.

FastAPI's routing, dependencies and validation cost several times what the look-up itself does; what they do
for the other routes is done here by hand: the same checks, the same problem documents, the same counting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from fastapi import Response
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.api.bodies import ENTITY_ID_SCHEMA, ExplainableTerms, ExplainedBody
from app.api.disconnects import ClientWatch
from app.api.parts import Parts
from app.api.problems import defects, documented, respond_to_defect, respond_to_error
from app.api.request_id_header import header_of, with_request_id
from app.api.validation import as_bad_input, check_query
from inference.entities import check_entity_id
from inference.errors import BadEntityId, ForecacheError
from inference.logs import RequestId
from inference.serving.service import Request

PREFIX = "/predict/"
CONTENT_TYPE = (b"content-type", b"application/json")
_PARAMETERS = frozenset(ExplainableTerms.model_fields)
#: where the server leaves a request in the scope that it has begun itself
BEGUN = "forecache.begun"


def is_hot(scope: Scope) -> bool:
    """Whether this module answers the request."""
    return bool(scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(PREFIX))


class HotRequest:
    """One request on its way. It begins and ends without a coroutine when the store has its answer.

    `begin` it; when it tells that its look-up is over, `body` is the answer, or None when there is more to do or to
    say, which `finish` does. `allow` is asked first, and raises ForecacheError.
    """

    __slots__ = ("_allow", "_error", "_explain", "_parts", "_request", "_scope", "_tell", "body")

    def __init__(self, parts: Parts, allow: Callable[[Scope], None], scope: Scope, tell: Callable[[], None]) -> None:
        self.body: bytes | None = None
        self._parts = parts
        self._allow = allow
        self._scope = scope
        self._tell = tell
        self._request: Request | None = None
        self._error: Exception | None = None
        self._explain = False

    def begin(self) -> None:
        """Check the request and look the entity up; a refused one is told within this call."""
        scope = self._scope
        try:
            self._allow(scope)
            entity_id = check_entity_id(entity_id_of(scope, PREFIX))
            raw_query = scope["query_string"]
            model, max_staleness_s, timeout_s, explain = _terms(raw_query) if raw_query else (None, None, None, None)
            self._explain = explain is not None
            self._request = self._parts.service.look_up(
                model, (entity_id,), self._over, max_staleness_s=max_staleness_s, timeout_s=timeout_s
            )
        except Exception as error:  # noqa: BLE001 - `finish` tells it, whatever it is
            self._error = error
            self._tell()

    def _over(self) -> None:
        try:
            hits = None if self._request is None or self._explain else self._parts.service.hits(self._request)
            self.body = None if hits is None else hits[0].to_json_text()
        except Exception as error:  # noqa: BLE001 - see above
            self._error = error
        self._tell()

    async def finish(self, scope: Scope, receive: Receive, send: Send, request: RequestId) -> None:
        """Answer: with the body, with what is computed within the budget, or with why there is neither."""
        with ClientWatch(receive) as client:
            answered = await self._respond()
        if client.gone:
            return
        if isinstance(answered, Response):
            await answered(scope, receive, with_request_id(send, request))
            return
        headers = [CONTENT_TYPE, (b"content-length", b"%d" % len(answered))]
        if request.is_named:
            headers.append(header_of(request))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answered})

    async def _respond(self) -> Response | bytes:
        """Return the body of an answer, or the response that says why there is none."""
        try:
            return await self._answer()
        except ForecacheError as error:
            return respond_to_error(error)
        except ValidationError as error:
            return respond_to_error(as_bad_input(error.errors(include_url=False)))
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            defects.tell_each(error)
            return respond_to_defect()

    async def _answer(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self.body is None:
            assert self._request is not None  # noqa: S101 - tells mypy what `begin` promises
            if self._explain:
                explained, explanation = await self._parts.service.explain(self._request)
                return b'%b,"explanation":%b}' % (explained.to_json_text()[:-1], orjson.dumps(explanation))
            [answer] = await self._parts.service.complete(self._request)
            if isinstance(answer, ForecacheError):
                raise answer
            self.body = answer.to_json_text()
        return self.body


async def predict_one(
    parts: Parts, allow: Callable[[Scope], None], scope: Scope, receive: Receive, send: Send, request: RequestId
) -> None:
    """Answer one entity's prediction: stored if it is fresh, else computed within the budget."""
    hot: HotRequest | None = scope.pop(BEGUN, None)
    if hot is None:
        over = asyncio.Event()
        hot = HotRequest(parts, allow, scope, over.set)
        hot.begin()
        await over.wait()
    await hot.finish(scope, receive, send, request)


def _terms(raw_query: bytes) -> tuple[str | None, float | None, float | None, str | None]:
    sent = parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True)
    found = dict(sent)
    if len(found) < len(sent) or not found.keys() <= _PARAMETERS:
        check_query(sent, _PARAMETERS)
    terms = ExplainableTerms.model_validate(found)
    return terms.model, terms.max_staleness_s, terms.timeout_s, terms.explain


def entity_id_of(scope: Scope, prefix: str) -> str:
    """Return the id that a path ends with, as sent.

    Raises:
        BadEntityId: the path is no UTF-8, which servers decode into another entity's id.
    """
    path: str = scope["path"]
    if not path.isascii():
        try:
            unquote_to_bytes(scope.get("raw_path") or b"").decode()
        except UnicodeDecodeError as error:
            raise BadEntityId("entity_id is not valid UTF-8", field="entity_id") from error
    return path[len(prefix) :]


def openapi_operation() -> dict[str, Any]:
    """Return this route's entry in the OpenAPI document."""
    properties = ExplainableTerms.model_json_schema()["properties"]
    path = {"name": "entity_id", "in": "path", "required": True, "schema": ENTITY_ID_SCHEMA}
    query = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ExplainedBody.__name__}"}}}
    return {
        "tags": ["predict"],
        "summary": "Predict One",
        "description": "Return one entity's prediction: stored if it is fresh, else computed within the budget.",
        "operationId": "predict_one",
        "parameters": [path, *query],
        "responses": {
            "200": {"description": "OK", "content": content},
            **{str(status): response for status, response in documented(400, 404, 500, 503).items()},
        },
    }
