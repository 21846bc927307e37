"""The batch worker, one per GPU: `celery -A workers.gpu:celery_app worker -Q batch`.

One thread computes while the main thread keeps heartbeats and control going: a chunk takes many seconds.
"""

from __future__ import annotations

from tasks import celery_app as broker
from workers.devices import prepare_gpus
from workers.heartbeat import beat_while_running
from workers.pools import load_models_on_start, prepare_worker
from workers.watching import watch_versions

PROCESS = "gpu"

celery_app = prepare_worker(broker.celery_app, process=PROCESS, pool="threads", concurrency=1)
beat_while_running(
    broker.services,
    process=PROCESS,
    versions=lambda: broker.services().host.versions(),
    loading=lambda: broker.services().host.loading(),
)
load_models_on_start(broker.services, process=PROCESS, prepare=prepare_gpus)
watch_versions(broker.services, answers=False)
