"""Reads the bodies of requests, the same way for every route: unpacks them, keeps the limit, and parses JSON in UTF-8.

A thread parses and converts large bodies beside the event loop, one at a time.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.api.access import needed_scope
from app.api.limits import HELD, MAX_BODY_BYTES
from app.api.requests import as_bad_input, check_query
from inference.errors import BadInput, Overloaded, UnsupportedMedia, cut
from inference.protocols.json_documents import parse
from inference.settings.processes import Scope

#: zlib's number for a format with gzip's header or zlib's own
_ANY_HEADER = 32 + zlib.MAX_WBITS
#: bytes to unpack without a pause for other requests
_STEP_BYTES = 256 * 1024
#: the event loop itself parses bodies up to this size, in less than 3 ms whatever they hold
INLINE_BYTES = 64 * 1024
#: large bodies that may wait for their turn; each holds its bytes
MAX_WAITING = 16
#: fields of bodies with an item for each row of the request
_ROWS = ("entity_ids", "instances", "items", "entities")
_UNPACKED = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


T = TypeVar("T")

# one thread: each of several would hold up the event loop
_thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
_in_line: set[asyncio.Future[Any]] = set()


async def beside_loop(size: int, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return the result of a call that works on `size` bytes. If they are many, the thread for large bodies runs it.

    Raises:
        Overloaded: too many large bodies wait already.
    """
    work = partial(call, *arguments, **named)
    if size <= INLINE_BYTES:
        return work()
    if len(_in_line) >= MAX_WAITING:
        raise Overloaded("too many large bodies wait already: send smaller ones, or one after the other")
    done = asyncio.get_running_loop().run_in_executor(_thread, partial(copy_context().run, work))
    _in_line.add(done)
    done.add_done_callback(_in_line.discard)
    return await done


async def read_body(request: Request) -> bytes:
    """Return a request's body, unpacked if it is gzip or deflate. Counts its size while it arrives.

    Raises:
        RateLimited, TooHeavy: as `AccessControl.charge` says.
        HTTPException: 413, the body is over the limit, packed or unpacked.
        UnsupportedMedia: it is packed in another format.
        BadInput: it is not the gzip or deflate that it claims to be.
        Overloaded: there is no memory for it beside other requests.
        ClientDisconnect: the client hung up before the end of the body.
    """
    encoding, held = _encoding_of(request), request.scope[HELD]
    body = bytearray()
    async for piece in _unpacked(request.stream(), encoding, held.memory.unpacking):
        body += piece
        if encoding is not None:  # otherwise `BodyLimit` has counted it
            held.set(held.size + len(piece))
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {MAX_BODY_BYTES} bytes: send it in parts")
        request.app.access.charge(request.scope, size=len(body))
    return bytes(body)


def _encoding_of(request: Request) -> str | None:
    named = ",".join(request.headers.getlist("content-encoding")).lower()
    codings = [coding for each in named.split(",") if (coding := each.strip()) not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _UNPACKED:
        coding = cut(named)
        raise UnsupportedMedia(f"Content-Encoding {coding} is not supported: send gzip, deflate or none", field="body")
    return _UNPACKED[codings[0]]


async def _unpacked(
    pieces: AsyncIterator[bytes], encoding: str | None, turns: asyncio.Lock | None = None
) -> AsyncIterator[bytes]:
    """Yield the pieces of a body while they arrive. Unpacks a packed body in small steps that wait for their turn."""
    if encoding is None:
        async for piece in pieces:
            yield piece
        return
    unpacker: zlib._Decompress | None = None
    turns = turns or asyncio.Lock()
    try:
        async for piece in pieces:
            if piece and unpacker is None:
                unpacker = zlib.decompressobj(_format_of(encoding, piece))
            while piece and unpacker is not None and not unpacker.eof:
                async with turns:
                    unpacked = unpacker.decompress(piece, _STEP_BYTES)
                    await asyncio.sleep(0)
                piece = unpacker.unconsumed_tail
                yield unpacked
            if piece or (unpacker is not None and unpacker.unused_data):
                raise BadInput(f"the body is no {encoding}: it goes on after its end", field="body")
    except zlib.error as error:
        raise BadInput(f"the body is no {encoding}: {error}", field="body") from error
    # an empty body is not packed, whatever its header says
    if unpacker is not None and not unpacker.eof:
        raise BadInput(f"the body is no {encoding}: it is cut off", field="body")


def _format_of(encoding: str, start: bytes) -> int:
    """Return zlib's number of a format. "deflate" is zlib's format by the RFC; many clients leave its header out."""
    is_zlib = start[0] & 0x0F == zlib.DEFLATED and (len(start) == 1 or int.from_bytes(start[:2], "big") % 31 == 0)
    return _ANY_HEADER if encoding == "gzip" or is_zlib or start[:2] == b"\x1f\x8b" else -zlib.MAX_WBITS


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation in generated clients: the function's."""
    return f"{route.name}_of_version" if "{version}" in route.path else route.name


class JsonRoute(APIRoute):
    """A route that reads and refuses its query and its JSON body, if it takes one, by the rules of this module."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        answer = super().get_route_handler()
        expected = self.body_field
        parameters = _query_names(self.dependant)

        async def read_first(request: Request) -> Response:
            if parameters and request.scope["query_string"]:
                check_query(request.query_params.multi_items(), parameters)
            if expected is None:
                return await _kept(request, await answer(request))
            sent = await _read_json(request)
            try:
                return await _kept(request, await answer(sent))
            except RequestValidationError as error:
                raise as_bad_input(error.errors(), expected.field_info.annotation) from error

        return read_first


async def _kept(request: Request, response: Response) -> Response:
    """Return the response to a request once a replica has what it wrote, if Redis has Sentinels or is a cluster."""
    if (
        needed_scope(request.method, request.scope["path"]) is Scope.READ
        or response.status_code >= HTTPStatus.BAD_REQUEST
    ):
        return response
    replication = request.app.process.replication
    if replication is not None:
        await replication.reach()
    return response


class _ReadRequest(Request):
    """A request with its body already read and parsed, for FastAPI."""

    def __init__(self, request: Request, body: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read, self._document = body, document

    async def body(self) -> bytes:
        """Return the body."""
        return self._read

    async def json(self) -> Any:
        """Return the parsed body."""
        return self._document


async def _read_json(request: Request) -> _ReadRequest:
    body = await read_body(request)
    if not body:
        return _ReadRequest(request, b"", None)
    # browsers let other sites' pages send forms and plain text without a preflight, but not JSON
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, form = sent_as.partition("/")
    if kind != "application" or not (form == "json" or form.endswith("+json")):
        wish = "send JSON as application/json"
        text = f"{wish}, not as {cut(sent_as)}" if sent_as else f"no Content-Type came: {wish}"
        raise UnsupportedMedia(f"body: {text}", field="body")
    document = await beside_loop(len(body), parse, body)
    if isinstance(document, dict):
        rows = max((len(document[name]) for name in _ROWS if isinstance(document.get(name), list)), default=0)
        request.app.access.charge(request.scope, rows=rows)
    return _ReadRequest(request, body, document)


def _query_names(function: Dependant) -> set[str]:
    """Return the query parameters of a route's function and of what it depends on."""
    return {one.alias for one in function.query_params}.union(*map(_query_names, function.dependencies))
