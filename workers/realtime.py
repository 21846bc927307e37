"""The real-time worker: `celery -A workers.realtime:celery_app worker -Q realtime`.

The solo pool is the shortest way from message to answer: a round trip takes 2.7 ms, with threads 2.8 to 4.6.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_init

from inference.deployment import Deployment
from inference.settings import load_settings
from inference.settings.sentinel_urls import is_sentinel
from inference.settings.server_urls import is_redis
from workers.heartbeat import beat_while_running, served_queues
from workers.startup import ends_on_error, load_models_on_start, make_worker
from workers.watching import watch_versions

PROCESS = "realtime"

#: requests wait for this worker, so they must soon know of its death; four beats may be lost
BEAT_EVERY_S = 1.0
GONE_AFTER_S = 5


def save_round_trips(application: Celery) -> Celery:
    """Configure the application so that each task costs fewer round trips.

    `RealtimeResults` writes results, `RealtimeConsumer` sends events less often, and messages leave Redis at once.
    By default kombu keeps a message in a second place until its task is done. That costs a seventh of a lone task, and
    kombu sends the message again an hour after its worker was killed: nobody waits for a request by then, and a job
    has failed. A worker that stops in good order gives back what it has not begun in any case.
    """
    conf = application.conf
    kind = "SentinelResults" if is_sentinel(conf.result_backend) else "RealtimeResults"
    conf.result_backend = f"workers.redis_transport:{kind}+{conf.result_backend.removeprefix('redis+')}"
    conf.worker_consumer = "workers.consumer:RealtimeConsumer"
    if is_redis(conf.broker_url):
        conf.broker_transport_options = {**conf.broker_transport_options, "ack_emulation": False}
    return application


celery_app = save_round_trips(make_worker(load_settings(), process=PROCESS, pool="solo", concurrency=1))
deployment: Deployment = celery_app.deployment
beat_while_running(
    deployment,
    process=PROCESS,
    loads_models=True,
    every_s=BEAT_EVERY_S,
    gone_after_s=GONE_AFTER_S,
)


def _models_of_queues(application: Celery) -> list[str]:
    """Return the models whose requests this worker takes. It loads another one when a request comes."""
    return deployment.settings.models_of(served_queues(application))


def _prepare_fallbacks(sender: Any, **_: Any) -> None:
    for model in _models_of_queues(sender.app):
        if fallback := deployment.fallback(model):
            fallback.prepare()


load_models_on_start(deployment, process=PROCESS, models=_models_of_queues)
# after the models: two threads that import a library at once may see half of it
worker_init.connect(ends_on_error(_prepare_fallbacks), weak=False)
watch_versions(deployment, answers=True, models=_models_of_queues)
