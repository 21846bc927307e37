"""The server's ceiling: a bare ASGI endpoint that answers a constant of a real answer's size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

BODY = (
    b'{"entity_id":"user_123456","model":"bench","model_version":1,"prediction":0.12345678,"source":"batch",'
    b'"outcome":"hit_batch","cache_hit":true,"stale":false,"degraded":false,"as_of":"2026-01-31T03:00:00.000Z",'
    b'"computed_at":"2026-01-31T03:00:00.000Z","timestamp":1769828400.0}'
)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer every request with the same body."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": BODY})
