"""What may be done at which path: HEAD, OPTIONS, and sentences for what no route answers."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.routing import Match
from starlette.types import Scope

from app.api import hot_path
from app.api.problems import respond_to_status
from inference.errors import cut, shown_name

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: clients resolve these ids before they send a path
_DOTS = "clients resolve the ids . and .. in a path: send those to POST /predict or PUT /features"


def under_root(scope: Scope, root_path: str) -> None:
    """Take the path of a proxy off a request's path, where the proxy has left it there; it may be called again."""
    path, prefix, start = scope["path"], f"{root_path}/", 0
    # all of them: Starlette would take off another
    while path.startswith(prefix, start):
        start += len(root_path)
    scope["path"] = path[start:]
    scope["root_path"] = root_path


def without_head(scope: Scope) -> Scope:
    """Return the scope of the GET that a HEAD stands for; the server leaves the body out of the answer."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


async def respond_without_route(request: Request, _: Exception) -> Response:
    """Return the response to a path or a method that no route answers: 404, 405, or what OPTIONS asks for."""
    path: str = request.scope["path"]
    allowed = _METHODS if path == "*" else _allowed(request, path)
    if not allowed:
        return respond_to_status(404, f"there is no path {shown_name(path)}: {_hint(request, path)}", path)
    if request.method == "OPTIONS":
        return options(allowed)
    detail = f"{request.method} {shown_name(path)} is not allowed, only {', '.join(allowed)}"
    if path == "/predict":
        detail += f", or GET /predict/ID; {_DOTS}"
    return respond_to_status(405, detail, path, {"Allow": ", ".join(allowed)})


def options(allowed: tuple[str, ...]) -> Response:
    """Return the answer to OPTIONS on a path that allows these methods."""
    head = ("HEAD",) if "GET" in allowed else ()
    return Response(status_code=204, headers={"Allow": ", ".join((*allowed, *head, "OPTIONS"))})


def _allowed(request: Request, path: str) -> tuple[str, ...]:
    """Return every method of a path: Starlette names only those of the first route that has it."""
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
