"""An existing FastAPI application that asks Forecache over HTTP, and works without it too.

uvicorn fastapi_shop:app --port 9000
curl http://127.0.0.1:9000/flights/FL-000001
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from fastapi import Depends, FastAPI, Request

FORECACHE_URL = os.environ.get("FORECACHE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("SHOP_MODEL", "delay")

#: Forecache's own budget is the model's `timeout_ms`; here a little more, for the network
TIMEOUT = httpx.Timeout(0.5, connect=0.2)
#: one client for the whole process: a hit costs a millisecond, a new connection as much again
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep one pooled client for as long as the application runs."""
    async with httpx.AsyncClient(base_url=FORECACHE_URL, timeout=TIMEOUT, limits=LIMITS) as client:
        yield {"forecache": client}


app = FastAPI(lifespan=lifespan)


def forecache_of(request: Request) -> httpx.AsyncClient:
    """Return the client that `lifespan` opened."""
    client: httpx.AsyncClient = request.state.forecache
    return client


async def predicted_delay(client: httpx.AsyncClient, flight: str) -> dict[str, Any] | None:
    """Return Forecache's answer; None for a flight that it does not know, or when it has no answer now.

    Somebody waits for the page, so nothing is tried twice: Forecache has been down its own ladder (stale value,
    previous run, default) before it says 503, and its Retry-After is longer than anybody wants to wait here.
    """
    try:
        # an id may hold a slash, a space, anything: safe=""
        response = await client.get(f"/predict/{quote(flight, safe='')}", params={"model": MODEL})
    except httpx.TransportError:  # time-outs too
        return None
    if response.status_code in (404, 503):
        return None
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


@app.get("/flights/{flight}")
async def show(flight: str, client: Annotated[httpx.AsyncClient, Depends(forecache_of)]) -> dict[str, Any]:
    """A page of yours: complete with a prediction, and still a page without one."""
    answer = await predicted_delay(client, flight)
    if answer is None:
        return {"flight": flight, "delay_min": None, "note": "no prediction at the moment"}
    return {"flight": flight, "delay_min": answer["prediction"], "note": "old" if answer["degraded"] else "fresh"}
