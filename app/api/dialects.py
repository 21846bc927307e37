"""Errors as the serving protocols have them, and bodies as their clients send them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response

from app.api.limits import MAX_BODY_BYTES
from inference.errors import BadInput

#: zlib's number for a format with gzip's header, or zlib's own
_ANY_HEADER = 32 + zlib.MAX_WBITS
SCHEMA = "ProtocolError"


def speaks_protocol(path: str) -> bool:
    """Tell whether a path belongs to one of the serving protocols, whose errors are their own."""
    return path.startswith(("/v1/", "/v2/")) or path == "/v2"


def respond_with_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as both protocols write it."""
    # ASCII only: the message may quote text that is no valid Unicode
    return Response(json.dumps({"error": message}), status, headers=dict(headers or {}), media_type="application/json")


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of an operation that may answer with these errors."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{SCHEMA}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def error_schema() -> dict[str, Any]:
    """Return the OpenAPI schema of an error."""
    return {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


async def body_of(request: Request) -> bytes:
    """Return a request's body, unpacked when it came as gzip or deflate.

    Raises:
        HTTPException: 413, it is over the limit, packed or unpacked.
        BadInput: it is packed otherwise, or broken.
    """
    body = await request.body()
    packed = request.headers.get("content-encoding", "identity").lower()
    if packed == "identity":
        return body
    if packed not in ("gzip", "deflate"):
        raise BadInput(f"Content-Encoding {packed} is not supported: send gzip, deflate or none")
    try:
        unpacker = zlib.decompressobj(_ANY_HEADER)
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise BadInput(f"the body is no {packed}: {error}") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body is over {MAX_BODY_BYTES} bytes: send it in parts")
    if not unpacker.eof or unpacker.unused_data:
        raise BadInput(f"the body is no {packed}: it is cut off, or goes on after its end")
    return unpacked
