"""The usual way to await a task over HTTP: `apply_async(...).get()` in FastAPI's thread pool.

The task is Forecache's own, run by a worker as Celery makes it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from baselines.plain_queue import QUEUE, with_its_queue
from inference.settings import load_settings
from tasks.celery_app import make_celery

MODEL = "bench"
TIMEOUT_S = 30

app = FastAPI()
celery_app = with_its_queue(make_celery(load_settings()))


@app.get("/predict/{entity_id}")
def predict(entity_id: str) -> dict[str, Any]:
    """Send one task for one id and wait for its result."""
    arguments = {"model": MODEL, "entity_ids": [entity_id]}
    result = celery_app.send_task("forecache.predict_entities", kwargs=arguments, queue=QUEUE)
    answer = result.get(timeout=TIMEOUT_S)["predictions"][0]
    return {"entity_id": answer["entity_id"], "prediction": answer["prediction"], "outcome": "computed"}


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Tell that the server is up."""
    return {"ready": True}
