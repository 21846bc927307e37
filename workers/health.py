"""Tells whether a container's worker is alive, for its health check: `python -P -m workers.health`.

A solo worker does not answer Celery's own question while a task runs. The heartbeat in Redis comes from a thread of its
own: a worker that computes, or still loads its models, is alive.
"""

from __future__ import annotations

import socket
import sys

from inference.errors import ForecacheError, StoreUnavailable
from inference.monitoring.presence import LISTENERS, Presence, WorkerBeat
from inference.redis.clients import Patience, open_client
from inference.redis.keys import Keys
from inference.settings import load_settings

_REDIS_TIMEOUT_S = 5.0


def main() -> int:
    """Return 0 if a worker on this host has a fresh heartbeat, else 1; print which.

    Returns 0 too if Redis does not answer: the worker goes on when Redis is back, and a restart would only lose its
    loaded models.
    """
    host = socket.gethostname()
    try:
        said = find_worker(host)
    except StoreUnavailable as error:
        print(f"cannot be told: {error.message}")  # noqa: T201 - shown by `docker inspect`
        return 0
    except ForecacheError as error:
        print(error.message)  # noqa: T201
        return 1
    print(said or f"no worker on {host} has been heard of lately")  # noqa: T201
    return 0 if said else 1


def find_worker(host: str) -> str | None:
    """Return a line about a worker that is alive on a host (a container has one); None if there is none.

    Raises:
        StoreUnavailable: Redis did not answer.
        SettingsError: the settings cannot be used.
    """
    settings = load_settings()
    tag = settings.redis.key_prefix
    with open_client(settings.cache_url, Patience(_REDIS_TIMEOUT_S), tag=tag) as client:
        presence = Presence(client, Keys(tag))
        for queue in (*settings.queues, LISTENERS):
            for worker in presence.roster(queue).alive:
                if worker.host == host:
                    return f"{worker.name} is alive and {_state(worker)}"
    return None


def _state(worker: WorkerBeat) -> str:
    # an outage of the broker makes all workers deaf, and a restart would only lose their loaded models
    if worker.deaf:
        return "takes no tasks: the broker gives it none"
    return "takes tasks" if worker.ready else "loads its models"


if __name__ == "__main__":
    sys.exit(main())
