"""An existing Django application that asks Forecache over HTTP; one file, so that it runs as it is.

python django_shop.py runserver 9001 --noreload
curl 'http://127.0.0.1:9001/flights?id=FL-000001&id=FL-000002'
"""

from __future__ import annotations

import os
import sys
from typing import Any

import httpx
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

MODEL = os.environ.get("SHOP_MODEL", "delay")

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        SECRET_KEY="of the example only",  # noqa: S106 - it signs nothing here
        FORECACHE_URL=os.environ.get("FORECACHE_URL", "http://127.0.0.1:8000"),
    )

#: one client for the whole process, shared by its threads (httpx.Client may be); it connects on first use
forecache = httpx.Client(
    base_url=settings.FORECACHE_URL,
    timeout=httpx.Timeout(0.5, connect=0.2),
    limits=httpx.Limits(max_connections=20, max_keepalive_connections=20),
)


def predicted_delays(flights: list[str]) -> dict[str, float | None]:
    """Return the delay of each flight in one call, None where there is no prediction.

    Up to 1 000 ids a call. What fails for one flight (unknown: `unknown-entity`) is that item's `error`; a 503 or
    a time-out means that there is none for any of them now, and the page is shown without.
    """
    try:
        response = forecache.post("/predict", json={"model": MODEL, "entity_ids": flights})
    except httpx.TransportError:  # time-outs too
        return dict.fromkeys(flights)
    if response.status_code == 503:
        return dict.fromkeys(flights)
    items: list[dict[str, Any]] = response.raise_for_status().json()["predictions"]
    return {item["entity_id"]: item.get("prediction") for item in items}


def show(request: HttpRequest) -> JsonResponse:
    """A page of yours: complete with predictions, and still a page without them."""
    flights = request.GET.getlist("id")
    return JsonResponse({"delays_min": predicted_delays(flights) if flights else {}})


urlpatterns = [path("flights", show)]
application = get_wsgi_application()  # for gunicorn and the like: `gunicorn django_shop:application`

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
