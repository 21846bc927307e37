"""A worker as Celery makes it, with the tasks and the model of ours: whom `apply_async(...).get()` waits for.

Ours spares itself round trips (`workers.realtime`), which would be to its rival's advantage too.
"""

from __future__ import annotations

from baselines.plain_queue import QUEUE, with_its_queue
from inference.settings import load_settings
from workers.startup import load_models_on_start, make_worker

# solo is the quickest of Celery's pools, and ours
celery_app = with_its_queue(make_worker(load_settings(), process=QUEUE, pool="solo", concurrency=1))
load_models_on_start(celery_app.deployment, process=QUEUE)
