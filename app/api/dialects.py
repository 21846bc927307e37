"""Errors as the serving protocols have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Response

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
