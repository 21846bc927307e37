"""The batch worker, one per GPU: `celery -A workers.gpu:celery_app worker -Q batch`.

One thread computes a chunk, which takes many seconds. Meanwhile the main thread serves heartbeats and remote control.
"""

from __future__ import annotations

from inference.deployment import Deployment
from inference.settings import load_settings
from workers.heartbeat import beat_while_running
from workers.startup import load_models_on_start, make_worker
from workers.watching import watch_versions

PROCESS = "gpu"

celery_app = make_worker(load_settings(), process=PROCESS, pool="threads", concurrency=1, in_background=True)
deployment: Deployment = celery_app.deployment
beat_while_running(deployment, process=PROCESS, loads_models=True)
load_models_on_start(deployment, process=PROCESS)
watch_versions(deployment, answers=False)
