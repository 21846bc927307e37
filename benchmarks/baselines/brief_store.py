"""The usual layout in Redis: one JSON value per id."""

from __future__ import annotations

import json
import time
from typing import Any

import redis

TTL_S = 24 * 3600


def store(client: redis.Redis, ids: list[str], predictions: Any) -> None:
    """Write one JSON value per id, which Redis forgets after a day."""
    pipeline = client.pipeline()
    for name, prediction in zip(ids, predictions, strict=True):
        value = json.dumps({"prediction": float(prediction), "timestamp": time.time()})
        pipeline.setex(f"pred:{name}", TTL_S, value)
    pipeline.execute()
