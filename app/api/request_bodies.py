"""Reads the bodies of requests, the same way for every route: unpacked, within the limit, as JSON in UTF-8.

What a client sent is parsed and converted beside the event loop when it is large, one body at a time.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.api.limits import HOLD, MAX_BODY_BYTES
from app.api.validation import as_bad_input, check_query
from inference.errors import BadInput, Overloaded, UnsupportedMedia, cut
from inference.protocols.json_documents import parse

#: zlib's number for a format with gzip's header, or zlib's own
_ANY_HEADER = 32 + zlib.MAX_WBITS
#: what is unpacked without a pause for other requests
_STEP_BYTES = 256 * 1024
#: what is parsed and converted on the event loop, in less than 3 ms whatever is in it
INLINE_BYTES = 64 * 1024
#: large bodies that wait for their turn; each holds its bytes
MAX_WAITING = 16
#: fields of bodies that hold an item for each row that is asked for
_ROWS = ("entity_ids", "instances", "items", "entities")
_UNPACKED = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


T = TypeVar("T")

# one: two that are at work at once would each keep the event loop waiting for its turn
_thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
_in_line: set[asyncio.Future[Any]] = set()


async def beside_loop(size: int, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return what a call gives that works on so many bytes: in the one thread for that if they are many.

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
    """Return a request's body, unpacked when it came as gzip or deflate, and counted as far as it is here.

    Raises:
        RateLimited, TooHeavy: as `AccessControl.charge` says.
        HTTPException: 413, it is over the limit, packed or unpacked.
        UnsupportedMedia: it is packed otherwise.
        BadInput: it is no gzip or deflate, whatever it says.
        Overloaded: there is no room for it beside those of other requests.
        ClientDisconnect: the client hung up before all of it was here.
    """
    encoding, hold = _encoding_of(request), request.scope[HOLD]
    body = bytearray()
    async for piece in _unpacked(request.stream(), encoding, hold.room.unpacking):
        body += piece
        if encoding is not None:  # else it was counted as it came
            hold.set(hold.size + len(piece))
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {MAX_BODY_BYTES} bytes: send it in parts")
        request.app.gate.charge(request.scope, size=len(body))
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
    """Yield the pieces of a body as they come, those of a packed one in small steps, of which each waits its turn."""
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
    # a body of no bytes is none, however it would have been packed
    if unpacker is not None and not unpacker.eof:
        raise BadInput(f"the body is no {encoding}: it is cut off", field="body")


def _format_of(encoding: str, start: bytes) -> int:
    """Return zlib's number of a format: "deflate" is zlib's by the RFC, and without its header by many clients."""
    is_zlib = start[0] & 0x0F == zlib.DEFLATED and (len(start) == 1 or int.from_bytes(start[:2], "big") % 31 == 0)
    return _ANY_HEADER if encoding == "gzip" or is_zlib or start[:2] == b"\x1f\x8b" else -zlib.MAX_WBITS


class JsonRoute(APIRoute):
    """A route whose query and body, if it takes one, are read by this module and refused in words of ours."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()
        expected = self.body_field
        parameters = {one.alias for one in self.dependant.query_params}

        async def read_first(request: Request) -> Response:
            if parameters and request.scope["query_string"]:
                check_query(request.query_params.multi_items(), parameters)
            if expected is None:
                return await answer(request)
            sent = await _read_json(request)
            try:
                return await answer(sent)
            except RequestValidationError as error:
                raise as_bad_input(error.errors(), expected.field_info.annotation) from error

        return read_first


class _ReadRequest(Request):
    """A request whose body has been read and parsed: what FastAPI asks for is there."""

    def __init__(self, request: Request, body: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read, self._document = body, document

    async def body(self) -> bytes:
        """Return the body."""
        return self._read

    async def json(self) -> Any:
        """Return what the body says."""
        return self._document


async def _read_json(request: Request) -> _ReadRequest:
    body = await read_body(request)
    if not body:
        return _ReadRequest(request, b"", None)
    # pages of other sites may send forms and plain text without asking, JSON they may not
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, form = sent_as.partition("/")
    if kind != "application" or not (form == "json" or form.endswith("+json")):
        wish = "send JSON as application/json"
        text = f"{wish}, not as {cut(sent_as)}" if sent_as else f"no Content-Type came: {wish}"
        raise UnsupportedMedia(f"body: {text}", field="body")
    document = await beside_loop(len(body), parse, body)
    if isinstance(document, dict):
        rows = max((len(document[name]) for name in _ROWS if isinstance(document.get(name), list)), default=0)
        request.app.gate.charge(request.scope, rows=rows)
    return _ReadRequest(request, body, document)
