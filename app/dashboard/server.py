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
from flower.app import Flower, rewrite_handler
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.utils import prepend_url
from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets

from app.dashboard.actions import Action
from app.dashboard.bounded_server import BoundedServer
from app.dashboard.credentials import Credentials, find_credentials
from app.dashboard.entrance import Entrance
from app.dashboard.figures import read_costs, read_hit_rates, read_queues, read_runs
from app.dashboard.flower_redis import count_by_our_url, watch_for_silence
from app.dashboard.pages import Faces, OutsidePrefix, Readers, page_handlers
from app.dashboard.reading import SharedReads
from app.dashboard.theme import Templates
from app.http import raise_descriptors
from inference.deployment import Deployment
from inference.errors import SettingsError
from inference.logs import configure_logging, get_logger
from inference.redis.clients import WORKER
from inference.settings import DashboardSettings, Settings
from tasks.broker import CeleryBroker
from tasks.celery_app import make_celery

log = get_logger(__name__)

_FORGETS_EVERY_MS = 60_000
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SettingsError: the address cannot be listened on, or the credentials cannot be used.
    """
    configure_logging("dashboard", form=settings.logs.format, level=settings.logs.level)
    # a page that refreshes every 2 s would fill the log with itself
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    # it asks workers that are still loading their models, and warns of each that does not answer yet
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    sockets = _listen(settings.dashboard.host, settings.dashboard.port)
    credentials = find_credentials(settings)
    watch_for_silence()
    count_by_our_url(settings)
    entrance = Entrance(credentials)
    entrance.guard()
    with Deployment(settings, WORKER, CeleryBroker) as deployment:
        application, act = make_celery(settings), partial(act_on, deployment)
        flower = build_flower(application, settings.dashboard, credentials, readers_of(deployment), act)
        raise_descriptors()
        BoundedServer(flower, entrance).add_sockets(sockets)
        for number in (signal.SIGINT, signal.SIGTERM):
            flower.io_loop.asyncio_loop.add_signal_handler(number, flower.stop)
        PeriodicCallback(lambda: forget_workers(flower), _FORGETS_EVERY_MS).start()
        _announce(settings, credentials)
        flower.start()


def forget_workers(flower: Flower) -> None:
    """Drop what Flower keeps by the names of workers: metrics of those that are gone, counts beyond `max_workers`.

    Flower itself drops the metrics only when it is scraped, and the counts never.
    """
    flower.purge_offline_worker_metrics()
    state = flower.events.state
    known = {name for name, _ in state.workers.items()}
    for by_name in (state.counter, state.tasks_by_worker, flower.inspector.workers):
        for name in [name for name in by_name if name not in known]:
            del by_name[name]


def build_flower(
    celery_app: Celery,
    settings: DashboardSettings,
    credentials: Credentials,
    readers: Readers,
    act: Callable[[Action], dict[str, Any]],
) -> Flower:
    """Return Flower with our pages; only whoever has the credentials gets in. Nothing connects yet."""
    prefix = settings.url_prefix.strip("/")
    default_options.basic_auth = [credentials.basic_auth]
    default_options.url_prefix = prefix or None
    default_options.read_only = settings.read_only
    # Flower remembers 100 000 tasks, of some 6 KiB each, and every worker that ever was, unless told otherwise
    default_options.max_tasks = settings.max_tasks
    default_options.max_workers = settings.max_workers
    default_options.purge_offline_workers = max(1, round(settings.forget_workers_after))
    # its pages ask the process-wide default application for the time zone
    celery_app.set_default()
    own: dict[str, Any] = {"template_loader": Templates(flower_settings["template_path"])}
    if prefix:  # as Flower's own command does
        own |= {name: prepend_url(flower_settings[name], prefix) for name in ("login_url", "static_url_prefix")}
        own |= {"default_handler_class": OutsidePrefix, "default_handler_args": {"prefix": prefix}}
    flower = Flower(capp=celery_app, options=default_options, **{**flower_settings, **own})
    faces = Faces(readers, act, SharedReads(flower.executor))
    handlers = page_handlers(faces, open_metrics=settings.open_metrics)
    flower.add_handlers(r".*", [rewrite_handler(one, prefix) for one in handlers] if prefix else handlers)
    return flower


def readers_of(deployment: Deployment) -> Readers:
    """Return what reads each page's figures."""
    return {
        "hit-rates": partial(read_hit_rates, deployment),
        "runs": partial(read_runs, deployment),
        "queues": lambda _: read_queues(deployment),
        "cost": partial(read_costs, deployment),
    }


def act_on(deployment: Deployment, action: Action) -> dict[str, Any]:
    """Do what a button asks for, and wake the maintenance worker."""
    done = action.do(deployment.runs)
    deployment.broker.hurry()
    return done


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
    root = f"http://{f'[{host}]' if ':' in host else host}:{port}/{settings.dashboard.url_prefix.strip('/')}"
    log.info(
        "dashboard.ready",
        url=f"{root.rstrip('/')}/hit-rates",
        username=credentials.username,
        password_in=str(credentials.file or "the settings"),
    )
    if host not in _LOOPBACK:
        log.warning("dashboard.remote", host=host, advice="basic auth over plain HTTP: put a TLS proxy before it")
