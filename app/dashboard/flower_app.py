"""Flower with our pages and tabs in it, basic auth always on, and the changes that it needs to work with our Redis."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from celery import Celery
from flower.app import Flower, rewrite_handler
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.utils import broker, prepend_url
from kombu.transport.redis import Transport
from tornado.template import Loader, Template
from tornado.web import RedirectHandler, url

from app.dashboard.access import Credentials
from app.dashboard.pages import PAGES, OutsidePrefix, SharedReads, page_handlers
from inference.deployment import Deployment
from inference.logs import get_logger
from inference.redis.clients import Patience, open_async_client
from inference.settings import Settings
from inference.settings.server_urls import is_redis

log = get_logger(__name__)

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
NAVBAR = "navbar.html"

# the end of Flower's last tab; we patch the bar instead of copying it, so that Flower's own changes come through
_LAST_TAB = ">Broker</a>\n        </li>\n"
_TAB = """\
        <li class="nav-item">
          <a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}"
            href="{{{{ reverse_url('{name}') }}}}"
            {{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a>
        </li>
"""
_REDIS_TIMEOUT_S = 2.0


def build_flower(deployment: Deployment, celery_app: Celery, credentials: Credentials) -> Flower:
    """Return Flower with our pages; it lets in only people with the credentials. Nothing connects yet."""
    settings = deployment.settings.dashboard
    prefix = settings.url_prefix.strip("/")
    default_options.basic_auth = [credentials.basic_auth]
    default_options.url_prefix = prefix or None
    default_options.read_only = settings.read_only
    # by default Flower keeps 100 000 tasks of about 6 KiB each, and every worker that it ever saw
    default_options.max_tasks = settings.max_tasks
    default_options.max_workers = settings.max_workers
    default_options.purge_offline_workers = max(1, round(settings.forget_workers_after))
    # its pages ask the process-wide default application for the time zone
    celery_app.set_default()
    options: dict[str, Any] = {"template_loader": Templates(flower_settings["template_path"])}
    if prefix:  # like Flower's own command
        options |= {name: prepend_url(flower_settings[name], prefix) for name in ("login_url", "static_url_prefix")}
        options |= {"default_handler_class": OutsidePrefix, "default_handler_args": {"prefix": prefix}}
    flower = Flower(capp=celery_app, options=default_options, **{**flower_settings, **options})
    handlers = page_handlers(deployment, SharedReads(flower.executor))
    if prefix:  # people leave out the last slash
        start = url(f"/{re.escape(prefix)}", RedirectHandler, {"url": f"/{prefix}/", "permanent": False})
        handlers = [start, *(rewrite_handler(one, prefix) for one in handlers)]
    flower.add_handlers(r".*", handlers)
    return flower


def forget_workers(flower: Flower) -> None:
    """Drop Flower's data about workers: metrics of those that are gone, counts of those beyond `max_workers`.

    Flower itself drops the metrics only when Prometheus scrapes it, and never drops the counts.
    """
    flower.purge_offline_worker_metrics()
    state = flower.events.state
    known = {name for name, _ in state.workers.items()}
    for by_name in (state.counter, state.tasks_by_worker, flower.inspector.workers):
        for name in [name for name in by_name if name not in known]:
            del by_name[name]


def watch_for_silence() -> None:
    """Make the connection that hears Celery's events check Redis for a sign of life after a second of silence.

    Kombu checks in a worker's event loop only; Flower would listen to a dead connection for ever.
    """

    def heartbeat_check(self: Transport, *_: Any, **__: Any) -> None:
        self.cycle.maybe_check_subclient_health()

    Transport.heartbeat_check = heartbeat_check


def count_by_our_url(settings: Settings) -> None:
    """Make Flower count the messages of a Redis broker through the settings' URL.

    Its own client knows neither the database of a Unix socket nor the options of TLS in a URL.
    """
    if not is_redis(settings.broker_url):
        return

    class OurRedis(broker.RedisBase):  # type: ignore[misc]  # flower has no types
        def __init__(self, broker_url: str, *arguments: Any, **options: Any) -> None:
            super().__init__(broker_url, *arguments, **options)
            self.redis = open_async_client(settings.broker_url, Patience(_REDIS_TIMEOUT_S))

    for name in ("Redis", "RedisSsl", "RedisSocket", "RedisSentinel"):
        setattr(broker, name, OurRedis)


def with_our_tabs(navbar: str) -> str:
    """Return Flower's navigation bar with our tabs. If the bar has changed, log it and return the bar unchanged."""
    if _LAST_TAB not in navbar:
        log.warning("dashboard.no_tab", reason="Flower's navbar has changed: open /hit-rates by its address")
        return navbar
    tabs = "".join(_TAB.format(name=name, title=title) for name, title in PAGES.items())
    return navbar.replace(_LAST_TAB, _LAST_TAB + tabs, 1)


class Templates(Loader):
    """Loads our templates first, then Flower's."""

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATE_FOLDER / name
        text = (ours if ours.is_file() else Path(self.root) / name).read_text(encoding="utf-8")
        return Template(with_our_tabs(text) if name == NAVBAR else text, name=name, loader=self)
