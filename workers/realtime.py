"""The real-time worker: `celery -A workers.realtime:celery_app worker -Q realtime`.

Solo: the shortest way from message to answer (a round trip of 2.7 ms; threads 2.8 to 4.6).
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_init

from inference.deployment import Deployment
from inference.settings import load_settings
from inference.settings.server_urls import is_redis
from workers.heartbeat import beat_while_running, served_queues
from workers.startup import ends_on_error, load_models_on_start, make_worker, prepare_gpus
from workers.watching import watch_versions

PROCESS = "realtime"

#: requests wait for this worker: when it is killed, they should soon know; four beats may be lost
BEAT_EVERY_S = 1.0
GONE_AFTER_S = 5


def trim(application: Celery) -> Celery:
    """Configure the application so that each task costs fewer round trips.

    `RealtimeResults` writes results, `RealtimeConsumer` sends events less often, and messages leave Redis at once.
    By default kombu keeps a message in a second place until its task is done. That costs a seventh of a lone task, and
    kombu sends the message again an hour after its worker was killed: nobody waits for a request by then, and a job
    has failed. A worker that stops in good order gives back what it has not begun in any case.
    """
    conf = application.conf
    conf.result_backend = f"workers.redis_transport:RealtimeResults+{conf.result_backend.removeprefix('redis+')}"
    conf.worker_consumer = "workers.consumer:RealtimeConsumer"
    if is_redis(conf.broker_url):
        conf.broker_transport_options = {**conf.broker_transport_options, "ack_emulation": False}
    return application


celery_app = trim(make_worker(load_settings(), process=PROCESS, pool="solo", concurrency=1))
deployment: Deployment = celery_app.deployment
beat_while_running(
    deployment,
    process=PROCESS,
    loads_models=True,
    every_s=BEAT_EVERY_S,
    gone_after_s=GONE_AFTER_S,
)


def _own_models(application: Celery) -> list[str]:
    # what other queues' models need, it leaves to their workers; asked all the same, it loads one then
    return deployment.settings.models_of(served_queues(application))


def _prepare_fallbacks(sender: Any, **_: Any) -> None:
    for model in _own_models(sender.app):
        if fallback := deployment.fallback(model):
            fallback.prepare()


load_models_on_start(deployment, process=PROCESS, prepare=prepare_gpus, models=_own_models)
# after the models: of libraries that two threads import at once, one may meet half of the other's
worker_init.connect(ends_on_error(_prepare_fallbacks), weak=False)
watch_versions(deployment, answers=True, models=_own_models)
