"""Runs Flower over our Celery application, with our pages added and basic auth always on."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery
from flower.app import Flower
from flower.options import default_options
from flower.urls import settings as flower_settings
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from app.dashboard.credentials import Credentials, find_credentials
from app.dashboard.figures import LiveData, read_overview
from app.dashboard.pages import SharedRead, page_handlers
from app.dashboard.theme import Templates
from inference.errors import SettingsError
from inference.logs import configure_logging, get_logger
from inference.settings import Settings

log = get_logger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SettingsError: the address cannot be listened on, or the credentials cannot be used.
    """
    from tasks.celery_app import celery_app

    configure_logging("dashboard")
    # a page that refreshes every 2 s would fill the log with itself
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    # it asks workers that are still loading their models, and warns of each that does not answer yet
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    sockets = _listen(settings.dashboard.host, settings.dashboard.port)
    credentials = find_credentials(settings)
    data = live_data(settings)
    flower = build_flower(celery_app, credentials, partial(read_overview, data))
    HTTPServer(flower).add_sockets(sockets)
    for number in (signal.SIGINT, signal.SIGTERM):
        flower.io_loop.asyncio_loop.add_signal_handler(number, flower.stop)
    _announce(settings, credentials)
    flower.start()


def build_flower(celery_app: Celery, credentials: Credentials, read: Callable[[], dict[str, Any]]) -> Flower:
    """Return Flower with our pages; only whoever has the credentials gets in. Nothing connects yet."""
    default_options.basic_auth = [credentials.basic_auth]
    # its pages ask the process-wide default application for the time zone
    celery_app.set_default()
    templates = Templates(flower_settings["template_path"])
    flower = Flower(capp=celery_app, options=default_options, **{**flower_settings, "template_loader": templates})
    flower.add_handlers(r".*", page_handlers(SharedRead(read, flower.executor)))
    return flower


def live_data(settings: Settings) -> LiveData:
    """Return the figures of the deployment that the settings describe."""
    from inference.hits import HitWindows
    from tasks.celery_app import services
    from tasks.runs import runs

    windows = HitWindows(services().cache, services().keys)
    return LiveData(
        models=sorted(settings.models),
        hits=windows.read,
        in_service=lambda model: services().predictions(model).pointer(),
        runs=lambda model, limit: runs().list(model, limit=limit),
    )


def _listen(host: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(port, address=host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "stop what listens there, or set [dashboard] port"
            raise SettingsError(f"port {port} is taken: {fix}", field="dashboard.port") from error
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}): set [dashboard] host and port",
            field="dashboard.host",
        ) from error


def _announce(settings: Settings, credentials: Credentials) -> None:
    """Say where it is and where its password stands; the password itself is never logged."""
    host, port = settings.dashboard.host, settings.dashboard.port
    log.info(
        "dashboard.ready",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}/hit-rates",
        username=credentials.username,
        password_in=str(credentials.file or "the settings"),
    )
    if host not in _LOOPBACK:
        log.warning("dashboard.remote", host=host, advice="basic auth over plain HTTP: put a TLS proxy before it")
