"""A worker as Celery makes it, with the tasks and the model of ours: whom `apply_async(...).get()` waits for.

Ours spares itself round trips (`workers.realtime`), which would be to its rival's advantage too.
"""

from __future__ import annotations

from baselines.plain_queue import QUEUE, with_its_queue
from tasks import celery_app as broker
from workers.devices import prepare_gpus
from workers.pools import load_models_on_start, prepare_worker

# solo is the quickest of Celery's pools, and ours
celery_app = with_its_queue(prepare_worker(broker.celery_app, process=QUEUE, pool="solo", concurrency=1))
load_models_on_start(broker.services, process=QUEUE, prepare=prepare_gpus)
