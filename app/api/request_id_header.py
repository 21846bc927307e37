"""The id of each request: the client's `X-Request-ID` if it is sane, else one that is made when it is needed.

It stands in each answer but a plain prediction, which brings it only to a client that named one: making and sending it
would cost every hit something that few look at.
"""

from __future__ import annotations

from starlette.types import Message, Scope, Send

from inference.logs import RequestId, work_for

HEADER = b"x-request-id"
_NOT_FRAMED = (b"x-frame-options", b"DENY")


def begin_request(scope: Scope) -> RequestId:
    """Return a request's id, and say that everything from here on is done for it."""
    named = None
    for header, value in scope["headers"]:
        if header == HEADER:
            named = value.decode("latin-1")
            break
    request = RequestId(named)
    work_for((request,))
    return request


def header_of(request: RequestId) -> tuple[bytes, bytes]:
    """Return the header that tells the client."""
    return HEADER, str(request).encode()


def with_request_id(send: Send, request: RequestId) -> Send:
    """Return `send` with the id in the answer's headers, and that no page of another site may frame it, as `/docs`."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), header_of(request), _NOT_FRAMED]
        await send(message)

    return tell
