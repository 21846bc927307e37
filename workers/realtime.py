"""The real-time worker: `celery -A workers.realtime:celery_app worker -Q realtime`.

Solo: the shortest way from message to answer (a round trip of 2.7 ms; threads 2.8 to 4.6).
"""

from __future__ import annotations

from tasks import celery_app as broker
from workers.devices import prepare_gpus
from workers.heartbeat import beat_while_running
from workers.pools import load_models_on_start, prepare_worker
from workers.watching import watch_versions

PROCESS = "realtime"

#: requests wait for this worker: when it is killed, they should soon know; four beats may be lost
BEAT_EVERY_S = 1.0
GONE_AFTER_S = 5

celery_app = prepare_worker(broker.celery_app, process=PROCESS, pool="solo", concurrency=1)
beat_while_running(
    broker.services,
    process=PROCESS,
    versions=lambda: broker.services().host.versions(),
    every_s=BEAT_EVERY_S,
    gone_after_s=GONE_AFTER_S,
)
load_models_on_start(broker.services, process=PROCESS, prepare=prepare_gpus)
watch_versions(broker.services, answers=True)
