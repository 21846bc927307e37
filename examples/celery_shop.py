"""An existing Celery application that has Forecache predict, by messages alone; it imports nothing of Forecache.

    celery -A celery_shop:shop worker              # the application's own worker, as ever
    python celery_shop.py FL-000001 FL-000002      # enqueue, wait, print plain JSON
    python celery_shop.py --run                    # start a batch run

The messages are a stable contract: docs/existing.md.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from celery import Celery

# --- yours, as it is: your broker, your results, your settings ---------------------------------------------------

shop = Celery("shop", broker=os.environ["SHOP_BROKER_URL"], backend=os.environ["SHOP_RESULT_URL"])


# --- new: a second application object that only sends to Forecache and reads its results -------------------------

PREFIX = os.environ.get("FORECACHE_PREFIX", "forecache")  # [redis] prefix of forecache.toml
KEYS = {"global_keyprefix": f"{PREFIX}:"}

forecache = Celery(
    "forecache-client",
    broker=os.environ["FORECACHE_BROKER_URL"],  # [celery] broker_url, else [redis] url
    backend=os.environ["FORECACHE_RESULT_URL"],  # [redis] url
    set_as_current=False,  # your tasks go on belonging to `shop`
)
forecache.conf.update(
    # Forecache's keys in Redis start with its prefix; brokers other than Redis know no such option
    result_backend_transport_options=KEYS,
    broker_transport_options=KEYS if forecache.conf.broker_url.startswith("redis") else {},
    task_routes={
        "forecache.predict_*": {"queue": f"{PREFIX}.realtime"},
        "forecache.start_run": {"queue": f"{PREFIX}.maintenance"},
    },
    task_queue_max_priority=9,  # RabbitMQ refuses a queue that two applications declare differently
)

MODEL = os.environ.get("SHOP_MODEL", "delay")
#: after this the answer is of no use: a worker that comes to it later drops it
USEFUL_FOR_S = 30
#: with the requests of Forecache's own API, before the parts of its jobs: RabbitMQ counts up, Redis down
FIRST = 0 if forecache.conf.broker_url.startswith("redis") else 9


def enqueue(flights: list[str]) -> str:
    """Ask for the delays of flights; return the id of the result, which waits ten minutes for its reader."""
    message = {"model": MODEL, "entity_ids": flights}
    sent = forecache.send_task("forecache.predict_entities", kwargs=message, expires=USEFUL_FOR_S, priority=FIRST)
    return str(sent.id)


def read(result_id: str, timeout_s: float = USEFUL_FOR_S) -> dict[str, float | None]:
    """Return the delay of each flight, None where there is none; the message says why."""
    # Celery forbids waiting inside a task, since the waiting worker may be the one that is waited for.
    # Here it is not: Forecache's own workers compute
    result = forecache.AsyncResult(result_id).get(timeout=timeout_s, disable_sync_subtasks=False)
    for item in result["predictions"]:
        if "error" in item:
            print(item["entity_id"], item["error"]["code"], item["error"]["message"], file=sys.stderr)
    return {item["entity_id"]: item.get("prediction") for item in result["predictions"]}


@shop.task(name="shop.latest_first")  # type: ignore[untyped-decorator]  # celery has no types
def latest_first(flights: list[str]) -> list[str]:
    """One of your own tasks, which wants predictions: the flights, the most delayed first."""
    delays = read(enqueue(flights))
    return sorted(flights, key=lambda flight: delays[flight] or 0.0, reverse=True)


def start_run() -> dict[str, Any]:
    """Have Forecache score the whole table now; return the run, or `{"error": …}` when one is in progress."""
    run: dict[str, Any] = forecache.send_task("forecache.start_run", kwargs={"model": MODEL}).get(timeout=30)
    return run


if __name__ == "__main__":
    print(json.dumps(start_run() if sys.argv[1:] == ["--run"] else read(enqueue(sys.argv[1:])), indent=2))
