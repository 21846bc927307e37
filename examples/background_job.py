"""A script without a user who waits: it enqueues many predictions at once, and is patient when it has to be.

python background_job.py FL-000001 FL-000002 …      # up to 100 000 ids in a job
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import httpx

FORECACHE_URL = os.environ.get("FORECACHE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("SHOP_MODEL", "delay")
#: how long an outage may last before the script gives up
PATIENCE_S = float(os.environ.get("SHOP_PATIENCE_S", "120"))
#: how long one call waits for the job; the client's own time-out must be longer
WAIT_S = 20


def call(client: httpx.Client, method: str, url: str, **arguments: Any) -> dict[str, Any]:
    """Return the answer's body; on 503, and while nobody listens, try again when Retry-After says so."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        pause_s = 1.0
        try:
            response = client.request(method, url, **arguments)
            if response.status_code != 503 or time.monotonic() > give_up_at:
                body: dict[str, Any] = response.raise_for_status().json()
                return body
            pause_s = float(response.headers.get("Retry-After", pause_s))
        except httpx.ConnectError:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(pause_s)


def main(flights: list[str]) -> int:
    """Print each flight's prediction, or why there is none; returns the exit status."""
    with httpx.Client(base_url=FORECACHE_URL, timeout=WAIT_S + 10) as client:
        accepted = call(client, "POST", "/predictions", json={"model": MODEL, "entity_ids": flights})
        job: dict[str, Any] = {"state": "queued"}
        while job["state"] in ("queued", "running"):
            job = call(client, "GET", accepted["status_url"], params={"wait_s": WAIT_S})
    print(json.dumps(job, indent=2))
    return 0 if job["state"] == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
