"""Our pages inside Flower: the pages, the JSON with their figures, and the actions of their buttons."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado import web
from tornado.web import RequestHandler, StaticFileHandler, url

from app.dashboard.figures import READERS, Choice
from app.http import status_of
from inference.batch import DiffOptions, Runs, Trigger
from inference.deployment import Deployment
from inference.errors import BadInput, Defect, ForecacheError, StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger

log = get_logger(__name__)
_failures = Failures(__name__, "dashboard")
#: `Number.MAX_SAFE_INTEGER`
_MAX_SAFE_INTEGER = 2**53 - 1

STATIC_FOLDER = Path(__file__).parent / "static"
#: longer than all our ids
_LONGEST_ARGUMENT = 200
#: a page asks again after 2 s; a later answer is worth less than the message that it is late
READ_TIMEOUT_S = 3.0
#: an action may wait until the reconciler releases a model
ACT_TIMEOUT_S = 10.0

#: browsers may only run scripts of this server: none from an address, an id or another host. Plotly sets style
#: attributes
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: the pages in the order of their tabs: name in the address → title
PAGES = {"hit-rates": "Hit rates", "runs": "Runs", "differences": "Differences", "queues": "Queues", "cost": "Cost"}

T = TypeVar("T")


class SharedReads:
    """Runs blocking reads in threads, one at a time for each key. Pages that ask meanwhile share its answer."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def read(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return the result of `call`, or that of the same read if it is already running.

        Raises:
            StoreUnavailable: there is no answer within 3 seconds (the read itself goes on).
            ForecacheError: `call` raised it.
        """
        running: asyncio.Future[T] | None = self._running.get(key)
        if running is None:
            running = asyncio.get_running_loop().run_in_executor(self._executor, call)
            self._running[key] = running
            running.add_done_callback(lambda done: self._forget(key, done))
        return await _within(READ_TIMEOUT_S, running)

    async def act(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, without sharing it.

        Raises:
            StoreUnavailable: there is no answer within 10 seconds (the call itself goes on).
            ForecacheError: `call` raised it.
        """
        return await _within(ACT_TIMEOUT_S, asyncio.get_running_loop().run_in_executor(self._executor, call))

    def _forget(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        self._running.pop(key, None)
        if not done.cancelled():
            done.exception()  # perhaps nobody waits for it any more


async def _within(timeout_s: float, running: asyncio.Future[T]) -> T:
    try:
        # shielded: a closed page must not cancel the read for the others
        return await asyncio.wait_for(asyncio.shield(running), timeout_s)
    except TimeoutError as error:
        raise StoreUnavailable(f"Redis or the broker did not answer within {timeout_s:.0f} s") from error


@dataclass(frozen=True)
class Action:
    """A pressed button. Start and roll back need `model`, all others `run_id`.

    `generation`: the page showed it as the one to roll back from; if another one serves now, that is a conflict.
    `options`: of a comparison.
    """

    name: str
    model: str | None = None
    run_id: str | None = None
    generation: int | None = None
    options: DiffOptions = field(default_factory=DiffOptions)

    @classmethod
    def from_json(cls, body: Any) -> Action:
        """Check the JSON that a page sent.

        Raises:
            BadInput: it is not one of our actions, or lacks what the action needs.
        """
        known = [*_DOERS, "compare"]
        if not isinstance(body, Mapping) or body.get("action") not in known:
            raise BadInput(f"action is one of {', '.join(known)}", field="action")
        needed = "model" if body["action"] in ("start", "rollback") else "run_id"
        if not isinstance(body.get(needed), str):
            raise BadInput(f"{needed} is missing", field=needed)
        generation = body.get("generation")
        if body["action"] == "rollback" and type(generation) is not int:
            raise BadInput("generation is the one to roll back from", field="generation")
        options = DiffOptions.from_json(body.get("options", {}))
        return cls(body["action"], body.get("model"), body.get("run_id"), generation, options)

    def do(self, deployment: Deployment) -> dict[str, Any]:
        """Do it, wake the maintenance worker, and return the run, or what serves now, as JSON values.

        Raises:
            ForecacheError: as `Runs` says.
        """
        if self.name == "compare":
            return _compare(deployment, self)
        done = _DOERS[self.name](deployment.runs, self)
        deployment.broker.hurry()
        return done


def _compare(deployment: Deployment, action: Action) -> dict[str, Any]:
    """Let the maintenance worker compare, since it takes seconds of a processor."""
    view = deployment.runs.check_diff(str(action.run_id), action.options)
    deployment.broker.compare_run(view.run_id, action.options.to_json())
    return view.to_json()


_DOERS: dict[str, Callable[[Runs, Action], dict[str, Any]]] = {
    "start": lambda runs, action: runs.request(action.model, trigger=Trigger.API).to_json(),
    "cancel": lambda runs, action: runs.cancel(str(action.run_id)).to_json(),
    "resume": lambda runs, action: runs.resume(str(action.run_id)).to_json(),
    "publish": lambda runs, action: runs.publish(str(action.run_id), by="dashboard").to_json(),
    "rollback": lambda runs, action: runs.rollback(action.model, generation=action.generation).to_json(),
}


class _Page(BaseHandler):  # type: ignore[misc]  # Flower ships no types
    """Base of our pages: no cache may keep them, no other page may frame them, and they load nothing from elsewhere."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)

    def refuse(self, error: ForecacheError) -> None:
        """Answer with an error's message and its status."""
        self.set_status(status_of(error))
        self.write({"error": error.message})


class _Json(_Page):
    """Base of the answers to a page's script: errors are JSON, where Flower sends pages."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the reason of a refusal."""
        if status_code == HTTPStatus.UNAUTHORIZED:  # a header of Flower's makes browsers ask for the credentials
            super().write_error(status_code, **kwargs)
            return
        error = kwargs.get("exc_info", (None, None))[1]
        told = error.get_message() if isinstance(error, web.HTTPError) else None
        self.finish({"error": told or HTTPStatus(status_code).phrase})


class ShellPage(_Page):
    """A page without figures, so that it opens while Redis is away."""

    def initialize(self, page: str) -> None:
        """Take the arguments of the route."""
        self.page = page

    @web.authenticated
    def get(self) -> None:
        """Render the page."""
        self.render(
            f"{self.page}.html",
            page=self.page,
            read_only=self.application.options.read_only,
            plotly_version=version("plotly"),
        )


class PageData(_Json):
    """The figures of a page as JSON; 503 with the reason while they cannot be read."""

    def initialize(self, page: str, deployment: Deployment, reads: SharedReads) -> None:
        """Take the arguments of the route."""
        self.page, self.deployment, self.reads = page, deployment, reads

    @web.authenticated
    async def get(self) -> None:
        """Answer with the figures for the address."""
        choice = Choice(*(self._argument(name) for name in ("model", "window", "run")))
        try:
            read = partial(READERS[self.page], self.deployment, choice)
            self.write(exact_in_browsers(await self.reads.read((self.page, choice), read)))
        except ForecacheError as error:
            if isinstance(error, StoreUnavailable):
                log.warning("dashboard.no_figures", page=self.page, reason=error.message)
            self.refuse(error)
        except Exception as error:  # noqa: BLE001 - `tell` logs it, once for all polls
            self.refuse(Defect(f"this page failed: {_failures.tell(error, self.page, page=self.page)}"))
        else:
            _failures.over(self.page, page=self.page)

    def _argument(self, name: str) -> str:
        return str(self.get_argument(name, "", escape=False))[:_LONGEST_ARGUMENT]


class RunActions(_Json):
    """Takes the buttons' requests from our pages, from people with the credentials, unless read-only."""

    def initialize(self, deployment: Deployment, reads: SharedReads) -> None:
        """Take the arguments of the route."""
        self.deployment, self.reads = deployment, reads

    def check_xsrf_cookie(self) -> None:
        """Require the page's token even where Flower trusts basic auth, which browsers add by themselves."""
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    @web.authenticated
    async def post(self) -> None:
        """Do the action."""
        if self.application.options.read_only:
            self.set_status(403)
            self.write({"error": "the dashboard is read-only: [dashboard] read_only"})
            return
        action: Action | None = None
        try:
            action = Action.from_json(_json(self.request.body))
            done = await self.reads.act(partial(action.do, self.deployment))
        except ForecacheError as error:
            self.refuse(error)
            return
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            self.refuse(Defect(f"this was not done: {_failures.tell_each(error, action=action and action.name)}"))
            return
        log.info("dashboard.action", action=action.name, model=action.model, run_id=action.run_id)
        self.write(done)


class OutsidePrefix(RequestHandler):
    """Answers requests outside the configured path, which a proxy in front may have removed."""

    def initialize(self, prefix: str) -> None:
        """Take the arguments of the route."""
        self.prefix = prefix

    def check_xsrf_cookie(self) -> None:
        """Let a POST pass like a GET: there is nothing here."""

    def prepare(self) -> None:
        """Say where the pages are."""
        self.set_status(HTTPStatus.NOT_FOUND)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            f"There is nothing here: [dashboard] url_prefix says /{self.prefix}/. A proxy in front must leave that in "
            "the path (nginx: proxy_pass with an address and no path behind it).\n"
        )


class GuardedMetrics(Metrics):  # type: ignore[misc]  # Flower ships no types
    """Flower's own metrics, with credentials only; Flower itself shows them to everyone."""

    @web.authenticated
    async def get(self) -> None:
        """Answer with Flower's metrics."""
        await super().get()


def page_handlers(deployment: Deployment, reads: SharedReads) -> list[url]:
    """Return the routes of our pages; templates know them by their names."""
    plotly = files("plotly") / "package_data"
    arguments = {"deployment": deployment, "reads": reads}
    routes = [url(rf"/{page}", ShellPage, {"page": page}, name=page) for page in PAGES]
    routes += [url(rf"/{page}/data", PageData, {"page": page, **arguments}, name=f"{page}-data") for page in PAGES]
    routes += [
        url(r"/runs/actions", RunActions, arguments, name="runs-actions"),
        url(r"/forecache/(plotly\.min\.js)", StaticFileHandler, {"path": str(plotly)}, name="forecache-plotly"),
        url(r"/forecache/(.*)", StaticFileHandler, {"path": str(STATIC_FOLDER)}, name="forecache-static"),
    ]
    return routes if deployment.settings.dashboard.open_metrics else [*routes, url(r"/metrics", GuardedMetrics)]


def exact_in_browsers(value: Any) -> Any:
    """Return JSON values with large integers as text: JavaScript would round them, such as versions in nanoseconds."""
    if isinstance(value, dict):
        return {name: exact_in_browsers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact_in_browsers(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) > _MAX_SAFE_INTEGER else value


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadInput("the body is no JSON") from error
