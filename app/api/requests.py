"""Reads a request beside its body: id, path behind a proxy, whether the client is still there, mistakes in fields."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from inference import tracing
from inference.errors import BadEntityId, BadInput, cut, quoted
from inference.field_errors import WANTED, describe_field_error
from inference.logs import RequestId, work_for

if TYPE_CHECKING:
    from opentelemetry.trace import Span

ID_HEADER = b"x-request-id"
#: key in the scope: the span of a request that has been begun already, or None if it is not recorded
SPAN = "forecache.span"
#: path of a prediction of one entity, which FastAPI does not route
HOT_PREFIX = "/predict/"
#: probes and scrapes come every few seconds, and tell nobody anything in a trace
_UNTRACED = ("/health/", "/v2/health/", "/metrics")
HOT_ROUTE = f"{HOT_PREFIX}{{entity_id}}"
_NOT_FRAMED = (b"x-frame-options", b"DENY")
#: a stored answer comes long before that: this only watches clients of requests that wait for a worker
WATCH_AFTER_S = 0.02
#: least likeness of a misspelt query parameter to the right one, and how many names are compared at most
_ALIKE, _MOST_COMPARED = 0.75, 8


def begin_request(scope: Scope) -> RequestId:
    """Return the client's `X-Request-ID` if it is sane, otherwise a new id. From here on all work is for this request.

    Every answer carries the id, except a plain prediction without an id of the client's: to make and send one would
    slow down every hit, for the few who look at it.
    """
    named = None
    for header, value in scope["headers"]:
        if header == ID_HEADER:
            named = value.decode("latin-1")
            break
    request = RequestId(named)
    if tracing.tracer is not None:
        if SPAN not in scope and not scope["path"].startswith(_UNTRACED) and tracing.tracer.samples(scope["headers"]):
            scope[SPAN] = begin_span(scope)
        request.span = scope.get(SPAN) or tracing.tracer.unrecorded(scope["headers"])
    work_for((request,))
    return request


def begin_span(scope: Scope, look_up: tuple[int, int] | None = None) -> Span | None:
    """Begin the span of a sampled request; None if it is not recorded. `look_up`: as for `Tracer.request`.

    Paths are not told before the route is known: they may hold ids.
    """
    if tracing.tracer is None:
        return None
    method = scope["method"]
    return tracing.tracer.request(scope["headers"], method, {"http.request.method": method}, look_up)


def end_span(scope: Scope, status: int | None) -> None:
    """End the span of a request, if it is recorded. `status`: of the response; None: the client is gone."""
    span = scope.pop(SPAN, None)
    if span is None:
        return
    route = getattr(scope.get("route"), "path", None) or (HOT_ROUTE if scope["path"].startswith(HOT_PREFIX) else None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    tracing.end_request(span, status)


def header_of(request: RequestId) -> tuple[bytes, bytes]:
    """Return the response header with the request's id."""
    return ID_HEADER, str(request).encode()


def headers_of_others(request: RequestId) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of all answers but plain predictions: the request's id, and a ban on frames of other sites."""
    return header_of(request), _NOT_FRAMED


def with_request_id(send: Send, request: RequestId) -> Send:
    """Return `send` that adds `headers_of_others` to the answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers_of_others(request)]
        await send(message)

    return send_with_headers


def under_root(scope: Scope, root_path: str) -> None:
    """Remove a proxy's path from the start of a request's path, if the proxy left it there. May be called twice."""
    path, prefix, start = scope["path"], f"{root_path}/", 0
    # remove it as often as it stands there: Starlette would remove one more
    while path.startswith(prefix, start):
        start += len(root_path)
    scope["path"] = path[start:]
    scope["root_path"] = root_path


def without_head(scope: Scope) -> Scope:
    """Return the scope of a GET for a HEAD; the server leaves the body out of the answer."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


class ClientWatch:
    """Context that cancels the current task when the client disconnects: nobody would read the answer.

    `gone` says afterwards whether it did. Enter it after the request's body has been read: both use `receive`.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self.gone = False

    def __enter__(self) -> ClientWatch:
        self._working = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        # a server that shuts down also cancels: let that one pass
        return self.gone and isinstance(error, asyncio.CancelledError) and self._was_ours()

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._working is not None:
            self._working.cancel()

    def _was_ours(self) -> bool:
        return self._working is not None and self._working.uncancel() == 0


def entity_id_of(scope: Scope, prefix: str) -> str:
    """Return the entity id at the end of a path, as the client sent it.

    Raises:
        BadEntityId: the path is not UTF-8.
    """
    path: str = scope["path"]
    if not path.isascii():
        check_utf8(scope)
    return path[len(prefix) :]


def check_utf8(scope: Scope) -> None:
    """Check that a path is UTF-8; otherwise servers would decode it into another entity's id.

    Raises:
        BadEntityId: it is not.
    """
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError as error:
        raise BadEntityId("entity_id is not valid UTF-8", field="entity_id") from error


def as_bad_input(found: Sequence[Mapping[str, Any]], expected: Any = None) -> BadInput:
    """Return pydantic's findings as one error that names the field; `expected`: the model of the body."""
    # if one field is unknown and another one is missing, the unknown one is the mistake
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    field = _field_of(first)
    if first["type"] == "extra_forbidden":
        place, _, name = field.rpartition(".")
        text = _unknown(name, _fields_at(expected, first["loc"][1:-1]), place)
        return BadInput(f"{field}: {text}", field=field)
    texts = _texts([one for one in found if _field_of(one) == field])
    if field == "body":
        return BadInput(f"body: {_of_whole_body(first, texts, _fields_at(expected, ()))}", field=field)
    return BadInput(f"{field}: {texts}", field=field)


def check_query(sent: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    """Refuse a query that gives a parameter twice or misspells one: the server would ignore it without a word.

    Names that resemble none of ours pass: proxies and browsers add some.

    Raises:
        BadInput: it names the parameter.
    """
    foreign: list[str] = []
    seen: set[str] = set()
    for name, _ in sent:
        if name not in known:
            foreign.append(cut(name))
        elif name in seen:
            raise BadInput(f"{name}: is given twice: give it once", field=name)
        seen.add(name)
    plain = {_plain(name): name for name in known}
    for name in foreign[:_MOST_COMPARED]:
        near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_ALIKE)
        if near:
            raise BadInput(f"{name}: there is no such parameter; did you mean {plain[near[0]]}?", field=name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _field_of(one: Mapping[str, Any]) -> str:
    """Return the dotted name of a field, without pydantic's marks for the members of a union."""
    where, *rest = (cut(str(part)) for part in one["loc"])
    return ".".join(part for part in rest if not part.startswith(("dict[", "list["))) or where


def _texts(about_one_field: Sequence[Mapping[str, Any]]) -> str:
    wanted = dict.fromkeys(WANTED[one["type"]] for one in about_one_field if one["type"] in WANTED)
    first = about_one_field[0]
    if first["type"] not in WANTED:
        return describe_field_error(first)
    if first["type"] == "string_type" and type(first["input"]) is int and "." in _field_of(first):
        return f'ids are text in JSON: send "{cut(str(first["input"]))}"'
    return f"is {_described(first['input'])}: send {' or '.join(wanted)}"


def _of_whole_body(first: Mapping[str, Any], text: str, fields: Iterable[str]) -> str:
    if first["type"] == "missing":
        return f"is missing: send an object with {', '.join(fields)}"
    return f"{text} with {', '.join(fields)}" if first["type"] in WANTED else text


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {cut(str(value))}" if abs(value) < 1e300 else "a number"
    return "a list" if isinstance(value, list) else "an object"


def _unknown(name: str, known: Sequence[str], place: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    where = f" in {place}" if place else ""
    return f"there is no such field{where}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


def _fields_at(model: Any, location: Sequence[Any]) -> list[str]:
    """Return the field names of the object at a place in a body; `model`: the body's own."""
    for part in location:
        fields = getattr(_model_in(model), "model_fields", {})
        model = fields[part].annotation if part in fields else model
    return list(getattr(_model_in(model), "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the model inside an annotation such as `list[Item] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
