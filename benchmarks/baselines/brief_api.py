"""The usual endpoint: FastAPI, one GET to Redis, JSON decoded and encoded again."""

from __future__ import annotations

import json
import os
from typing import Any

import redis.asyncio
from fastapi import FastAPI, HTTPException

app = FastAPI()
client = redis.asyncio.Redis.from_url(os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/1"))


@app.get("/predict/{entity_id}")
async def predict(entity_id: str) -> dict[str, Any]:
    """Answer from Redis, or 404."""
    value = await client.get(f"pred:{entity_id}")
    if value is None:
        raise HTTPException(404, "no prediction")
    data = json.loads(value)
    return {
        "entity_id": entity_id,
        "prediction": data["prediction"],
        "timestamp": data["timestamp"],
        "cache_hit": True,
    }


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Tell that the server is up."""
    return {"ready": True}
