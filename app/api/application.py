"""Puts the routes together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import (
    features,
    health,
    hits,
    hot_path,
    metrics,
    open_inference,
    predict,
    predictions,
    runs,
    tensorflow_serving,
)
from app.api.access import OPEN_PATHS, AccessControl
from app.api.bodies import ExplainedBody
from app.api.crowd import Crowd
from app.api.dialects import SCHEMA as ERROR_SCHEMA
from app.api.dialects import documented_errors, error_schema, speaks_protocol
from app.api.hot_path import HotRequest
from app.api.limits import BodyLimit, Room
from app.api.open_inference import LENGTH_HEADER
from app.api.parts import OpenParts, open_parts
from app.api.problems import (
    Problem,
    add_problem_handlers,
    defects,
    documented,
    respond_to_defect,
    respond_to_error,
)
from app.api.request_id_header import HEADER, begin_request, with_request_id
from app.api.routing import respond_without_route, under_root, without_head
from app.api.watchdog import loop_watched
from app.http import places
from inference.errors import ForecacheError
from inference.logs import RequestId
from inference.settings import ApiSettings, Settings
from inference.stored_data import installed_release


class Application(FastAPI):
    """FastAPI behind the gate, but for the one request that goes the short way.

    HEAD is answered as GET is. `shown_under`: the path of a proxy, with which paths may begin or not. `crowd`, `room`:
    bounds that the server keeps before it asks the application. `told_apart_by`: headers of requests whose answers have
    more headers than a plain hit's.
    """

    def __init__(self, api: ApiSettings, **options: Any) -> None:
        super().__init__(**options)
        self.gate = AccessControl(api)
        self.shown_under = api.root_path
        self.crowd = Crowd(*places(api.max_connections))
        self.room = Room()
        self.told_apart_by = frozenset({HEADER, b"origin"} if api.cors_origins else {HEADER})
        # around all the rest, so that pages can read refusals too, and preflights need no key
        self._entry: ASGIApp = _with_cors(self._answer, api) if api.cors_origins else self._answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await self._entry(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self.shown_under:
            under_root(scope, self.shown_under)
        scope = without_head(scope)
        request = begin_request(scope)
        answer = _TrackedAnswer(send)
        try:
            await self._serve(scope, receive, answer.send, request)
        except ClientDisconnect:  # nobody is there to be told
            return
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            defects.tell_each(error)
            if not answer.begun:
                await respond_to_defect()(scope, receive, with_request_id(send, request))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: RequestId) -> None:
        if hot_path.is_hot(scope):
            await hot_path.predict_one(self.state.parts, self.gate.check, scope, receive, send, request)
            return
        try:
            self.gate.check(scope)
        except ForecacheError as error:
            await respond_to_error(error, scope["path"])(scope, receive, with_request_id(send, request))
            return
        await super().__call__(scope, receive, with_request_id(send, request))

    def hot_request(self, scope: Scope, tell: Callable[[], None]) -> HotRequest:
        """Return a request of which `is_hot` is true, for a server that begins it without a task.

        What is left to do once it has told, this application does as ever, given the request in the scope.
        """
        return HotRequest(self.state.parts, self.gate.check, scope, tell)


def _with_cors(answer: ASGIApp, api: ApiSettings) -> CORSMiddleware:
    return CORSMiddleware(
        answer,
        allow_origins=api.cors_origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
        allow_headers=(
            "Authorization",
            "X-API-Key",
            "X-Request-ID",
            "Idempotency-Key",
            "Content-Encoding",
            LENGTH_HEADER,
        ),
        expose_headers=("Location", "Retry-After", "X-Request-ID", "WWW-Authenticate", LENGTH_HEADER),
    )


class _TrackedAnswer:
    """Knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def send(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


def create_app(settings: Settings, *, open_parts: OpenParts = open_parts) -> FastAPI:
    """Return the HTTP service for these settings. Nothing connects before it is served."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_parts(settings) as parts:
            app.state.parts = parts
            with loop_watched():
                yield

    app = Application(
        settings.api,
        title="Forecache",
        version=installed_release() or "0",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
    )
    _add_documents(app, settings.api.root_path)
    for noun in (predict, predictions, features, runs, hits, health, metrics, open_inference):
        app.include_router(noun.router)
    app.router.routes.append(tensorflow_serving.route())
    app.add_middleware(BodyLimit, room=app.room)
    add_problem_handlers(app)
    for status in (404, 405):
        app.add_exception_handler(status, respond_without_route)
    return app


def _add_documents(app: FastAPI, root_path: str) -> None:
    """Serve `/openapi.json` and `/docs`, rendered once: FastAPI would spend milliseconds on each request."""
    rendering, rendered = asyncio.Lock(), list[bytes]()
    page = get_swagger_ui_html(openapi_url=f"{root_path}/openapi.json", title=f"{app.title} - Swagger UI").body

    async def document(_: Request) -> Response:
        async with rendering:
            if not rendered:
                rendered.append(await asyncio.to_thread(_openapi, app, root_path))  # a tenth of a second
        return Response(rendered[0], media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(page)

    app.add_route("/openapi.json", document, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)


def _openapi(app: FastAPI, root_path: str) -> bytes:
    """Return the OpenAPI document with our problems in the place of FastAPI's own 422."""
    servers = [{"url": root_path}] if root_path else None
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=servers)
    document["paths"] = {
        f"{hot_path.PREFIX}{{entity_id}}": {"get": hot_path.openapi_operation()},
        **document["paths"],
        **tensorflow_serving.openapi_paths(),
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if "requestBody" in operation:
                refusals = documented_errors if speaks_protocol(path) else documented
                operation["responses"] |= {str(status): what for status, what in refusals(413, 415).items()}
            if not path.startswith(OPEN_PATHS):
                refusals = documented_errors if speaks_protocol(path) else documented
                operation["responses"] |= {str(status): what for status, what in refusals(401, 403, 429).items()}
                operation["security"] = [{}, {"bearer": []}]
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    schemas[ERROR_SCHEMA] = error_schema()
    schemas["ExplainedBody"] = ExplainedBody.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return orjson.dumps(document)
