"""A FastAPI application that has Forecache compute many predictions behind its back, by forecache.AsyncClient.

uvicorn fastapi_jobs:app --port 9002
curl -X POST http://127.0.0.1:9002/reports -H 'Content-Type: application/json' -d '["FL-000001", "FL-000002"]'
curl http://127.0.0.1:9002/reports/JOB
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

from forecache import AsyncClient, DeadlineExceeded, NotFound

URL = os.environ.get("FORECACHE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("SHOP_MODEL", "delay")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep one client, with its connections, for as long as the application runs."""
    async with AsyncClient(URL, model=MODEL) as client:
        yield {"forecache": client}


app = FastAPI(lifespan=lifespan)


def client_of(request: Request) -> AsyncClient:
    """Return the client that `lifespan` opened."""
    client: AsyncClient = request.state.forecache
    return client


Forecache = Annotated[AsyncClient, Depends(client_of)]


@app.post("/reports", status_code=202)
async def begin(flights: list[str], forecache: Forecache) -> dict[str, str]:
    """Enqueue the predictions of a report; answer at once."""
    job = await forecache.enqueue(flights, priority="low")
    return {"report": job.id}


@app.get("/reports/{report}")
async def read(report: str, forecache: Forecache) -> dict[str, Any]:
    """Return the report, or that it is not ready within a second."""
    try:
        delays = await forecache.job(report).result(timeout_s=1)
    except DeadlineExceeded:
        return {"ready": False}
    except NotFound as error:
        raise HTTPException(404, error.message) from error
    return {"ready": True, "delays": {one.entity_id: one.value for one in delays}}
