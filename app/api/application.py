"""The HTTP application: puts the routes together, checks access, describes them in OpenAPI, answers unknown paths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import (
    entities,
    features,
    health,
    hot_path,
    metrics,
    open_inference,
    open_inference_extensions,
    predictions,
    runs,
    tensorflow_serving,
)
from app.api.access import OPEN_PATHS, AccessControl
from app.api.drain import Drain
from app.api.limits import BodyLimit, ConnectionLimit, RequestMemory
from app.api.open_inference import LENGTH_HEADER
from app.api.problems import (
    ERROR_SCHEMA,
    Problem,
    add_problem_handlers,
    defects,
    documented,
    documented_errors,
    error_schema,
    respond_to_defect,
    respond_to_error,
    respond_to_options,
    respond_to_status,
    speaks_protocol,
)
from app.api.process import ApiProcess, OpenProcess, open_process
from app.api.requests import ID_HEADER, begin_request, end_span, under_root, with_request_id, without_head
from app.api.schemas import ExplainedBody
from app.api.watchdog import loop_watched
from app.http import places
from inference import tracing
from inference.errors import ForecacheError, cut, shown_name
from inference.logs import RequestId
from inference.settings import ApiSettings, Settings
from inference.stored_data import installed_release

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: clients resolve these ids before they send a path
_DOTS = "clients resolve the ids . and .. in a path: send those to POST /predict or PUT /features"


class Application(FastAPI):
    """FastAPI behind the access check, and the hot path beside it.

    It answers HEAD like GET. `shown_under`: a proxy's path; request paths may begin with it. `connection_limit` and
    `memory`: limits that the server keeps before it asks the application. `drain`: whether the server is stopping.
    `headers_of_longer_answers`: request headers whose answers have more headers than a plain hit.
    """

    #: what routes work with, while the application runs; an attribute here, since one of Starlette's `state` takes a
    #: microsecond to read, a twentieth of a hit's Python
    process: ApiProcess

    def __init__(self, api: ApiSettings, **options: Any) -> None:
        super().__init__(**options)
        self.access = AccessControl(api)
        self.shown_under = api.root_path
        self.connection_limit = ConnectionLimit(*places(api.max_connections))
        self.memory = RequestMemory()
        self.drain = Drain(api.drain)
        self.headers_of_longer_answers = frozenset({ID_HEADER, b"origin"} if api.cors_origins else {ID_HEADER})
        # outermost, so that pages can read refusals, too, and preflights need no key
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
        except ClientDisconnect:  # nobody would read an answer
            return
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            defects.tell_each(error)
            if not answer.begun:
                await respond_to_defect()(scope, receive, with_request_id(answer.send, request))
        finally:
            end_span(scope, answer.status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: RequestId) -> None:
        if hot_path.is_hot(scope):
            await hot_path.predict_one(self.process.service, self.access, scope, receive, send, request)
            return
        try:
            self.access.check(scope)
        except ForecacheError as error:
            await respond_to_error(error, scope["path"])(scope, receive, with_request_id(send, request))
            return
        await super().__call__(scope, receive, with_request_id(send, request))


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
    """Remembers whether an answer has begun, and with which status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        self.begun = True
        self.status = message.get("status", self.status)
        await self._send(message)


def create_app(settings: Settings, *, open_process: OpenProcess = open_process) -> FastAPI:
    """Return the HTTP application for these settings. It connects to nothing before a server runs it."""

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        async with open_process(settings) as process:
            process.drain = app.drain
            app.process = process
            tracing.start("api", installed_release())
            try:
                with loop_watched():
                    async with _beside_http(app, process):
                        yield
            finally:
                await asyncio.to_thread(tracing.stop)

    app = Application(
        settings.api,
        title="Forecache",
        version=installed_release() or "0",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        # FastAPI's own traces and metrics would tell paths and bodies, and leave out what it does not route
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _add_documents(app, settings.api.root_path)
    # the extensions first: `/v2/models/stats` is no model
    for noun in (predictions, features, entities, runs, metrics, health, open_inference_extensions, open_inference):
        # not `include_router`: each application would build its own routes from these, for 70 ms of its first request
        app.router.routes.extend(noun.router.routes)
    app.router.routes.append(tensorflow_serving.route())
    app.add_middleware(BodyLimit, memory=app.memory)
    add_problem_handlers(app)
    for status in (404, 405):
        app.add_exception_handler(status, respond_without_route)
    return app


def _beside_http(app: Application, process: ApiProcess) -> AbstractAsyncContextManager[None]:
    """Return a context that serves gRPC, if the settings want it."""
    if process.settings.grpc.port is None:
        return nullcontext()
    from app.api.grpc_server import grpc_served  # its library is an extra

    return grpc_served(process, app.access, app.memory)


def _add_documents(app: FastAPI, root_path: str) -> None:
    """Serve `/openapi.json` and `/docs`. Renders them once: FastAPI would spend milliseconds on each request."""
    rendering, rendered = asyncio.Lock(), list[bytes]()
    page = get_swagger_ui_html(
        openapi_url=f"{root_path}/openapi.json",
        title=f"{app.title} - Swagger UI",
        swagger_js_url=f"{root_path}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root_path}/docs/swagger-ui.css",
        swagger_favicon_url=f"{root_path}/docs/favicon.png",
    ).body

    async def document(_: Request) -> Response:
        async with rendering:
            if not rendered:
                rendered.append(await asyncio.to_thread(_openapi, app, root_path))  # a tenth of a second
        return Response(rendered[0], media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(page)

    app.add_route("/openapi.json", document, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)
    # Swagger UI's own files: a server without the internet shows the page too
    app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))


def _openapi(app: FastAPI, root_path: str) -> bytes:
    """Return the OpenAPI document, with our problem documents instead of FastAPI's 422."""
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


async def respond_without_route(request: Request, _: Exception) -> Response:
    """Return the response to a path or method without a route: 404, 405, or the answer to OPTIONS."""
    path: str = request.scope["path"]
    allowed = _METHODS if path == "*" else _allowed(request, path)
    if not allowed:
        return respond_to_status(404, f"there is no path {shown_name(path)}: {_hint(request, path)}", path)
    if request.method == "OPTIONS":
        return respond_to_options(allowed)
    detail = f"{request.method} {shown_name(path)} is not allowed, only {', '.join(allowed)}"
    if path == "/predict":
        detail += f", or GET /predict/ID; {_DOTS}"
    return respond_to_status(405, detail, path, {"Allow": ", ".join(allowed)})


def _allowed(request: Request, path: str) -> tuple[str, ...]:
    """Return all methods of a path: Starlette only returns those of the first route that matches."""
    if path.startswith(hot_path.PREFIX):
        return ("GET",)
    return tuple(
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "path": path, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    )


def _hint(request: Request, path: str) -> str:
    tidy = "/" + "/".join(filter(None, path.split("/")))
    if tidy != path and _allowed(request, tidy):
        return f"did you mean {cut(tidy)}?"
    return f"GET /docs lists the paths; {_DOTS}" if path == "/" else "GET /docs lists the paths"
