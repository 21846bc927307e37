"""`GET /predict/{entity_id}`, the one request that has to be fast: plain ASGI beside FastAPI.

FastAPI's routing, dependencies and validation cost several times what the look-up itself does; what they do
for the other routes is done here by hand: the same checks, the same problem documents, the same counting.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from fastapi import Response
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.api.bodies import ENTITY_ID_SCHEMA, AnswerBody, Terms
from app.api.disconnects import ClientWatch
from app.api.naming import header_of, telling
from app.api.parts import Parts
from app.api.problems import documented, respond_to_defect, respond_to_error, respond_to_validation
from inference.entities import check_entity_id
from inference.errors import BadEntityId, ForecacheError
from inference.logs import get_logger
from inference.request_ids import RequestId

log = get_logger(__name__)

PREFIX = "/predict/"


# as a query string; other names in it are ignored, as FastAPI does
_NO_QUERY = Terms()


def is_hot(scope: Scope) -> bool:
    """Whether this module answers the request."""
    return bool(scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(PREFIX))


async def predict_one(parts: Parts, scope: Scope, receive: Receive, send: Send, request: RequestId) -> None:
    """Answer one entity's prediction: stored if it is fresh, else computed within the budget."""
    with ClientWatch(receive) as client:
        answered = await _respond(parts, scope)
    if client.gone:
        return
    if isinstance(answered, Response):
        await answered(scope, receive, telling(send, request))
        return
    # a Response object would cost a tenth of the whole request
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answered))]
    if request.is_named:
        headers.append(header_of(request))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answered})


async def _respond(parts: Parts, scope: Scope) -> Response | bytes:
    """Return the body of an answer, or the response that says why there is none."""
    try:
        return await _answer(parts, scope)
    except ForecacheError as error:
        return respond_to_error(error)
    except ValidationError as error:
        return respond_to_validation(error.errors(include_url=False)[0], "query")
    except Exception as error:
        log.exception("api.defect", error=type(error).__name__)
        return respond_to_defect()


async def _answer(parts: Parts, scope: Scope) -> bytes:
    entity_id = check_entity_id(_entity_id(scope))
    raw_query = scope["query_string"]
    terms = Terms.model_validate(dict(parse_qsl(raw_query.decode("latin-1")))) if raw_query else _NO_QUERY
    answers = await parts.service.predict(
        terms.model, [entity_id], max_staleness_s=terms.max_staleness_s, timeout_s=terms.timeout_s
    )
    answer = answers[0]
    if isinstance(answer, ForecacheError):
        raise answer
    return orjson.dumps(answer.to_json())


def _entity_id(scope: Scope) -> str:
    """Return the id as sent. A path that is no UTF-8 is refused: servers decode it into another entity's id."""
    path: str = scope["path"]
    if "\ufffd" in path or not path.isascii():
        try:
            unquote_to_bytes(scope.get("raw_path") or b"").decode()
        except UnicodeDecodeError as error:
            raise BadEntityId("entity_id is not valid UTF-8", field="entity_id") from error
    return path[len(PREFIX) :]


def openapi_operation() -> dict[str, Any]:
    """Return this route's entry in the OpenAPI document."""
    properties = Terms.model_json_schema()["properties"]
    path = {"name": "entity_id", "in": "path", "required": True, "schema": ENTITY_ID_SCHEMA}
    query = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{AnswerBody.__name__}"}}}
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
