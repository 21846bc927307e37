"""A real Celery worker over our configuration, with tasks that need no model. Run as a script."""

from __future__ import annotations

import time
from typing import Any

from inference.errors import ModelUnavailable
from inference.settings import load_settings
from tasks.celery_app import REALTIME_QUEUE, make_celery

celery_app = make_celery(load_settings(), imports=())


@celery_app.task(name="forecache.predict_echo")
def echo(deadline: float, **kwargs: Any) -> dict[str, Any]:
    """Return what was sent, after `sleep_s`."""
    time.sleep(kwargs.get("sleep_s", 0))
    return {**kwargs, "deadline": deadline}


@celery_app.task(name="forecache.predict_when_released")
def when_released(deadline: float) -> dict[str, Any]:
    """Keep the worker busy until the test pushes onto `release`; `busy` tells that it is."""
    celery_app.backend.client.rpush("busy", 1)
    celery_app.backend.client.blpop("release", 30)
    return {}


@celery_app.task(name="forecache.predict_marked")
def marked(deadline: float, number: int) -> dict[str, Any]:
    """Push the number onto the list of `later`."""
    later(number)
    return {}


@celery_app.task(name="forecache.predict_unavailable")
def unavailable(deadline: float) -> None:
    """Raise one of our errors."""
    raise ModelUnavailable("no active version")


@celery_app.task(name="forecache.predict_defect")
def defect(deadline: float) -> None:
    """Raise a foreign error."""
    raise ZeroDivisionError("secret detail")


@celery_app.task(name="forecache.predict_later")
def later(number: int) -> None:
    """Push the number onto a list that the test reads."""
    celery_app.backend.client.rpush("later", number)


if __name__ == "__main__":
    celery_app.worker_main(
        ["worker", "-Q", REALTIME_QUEUE, "-P", "solo", "-c", "1", "--loglevel", "WARNING", "--without-mingle"]
    )
