"""Our pages inside Flower, the JSON they refresh themselves from, and what their buttons post to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado import web
from tornado.web import RequestHandler, StaticFileHandler, url

from app.dashboard.actions import Action
from app.dashboard.figures import Choice
from app.dashboard.reading import SharedReads
from app.http import status_of
from inference.errors import BadInput, Defect, ForecacheError, StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger

log = get_logger(__name__)
_failures = Failures(__name__, "dashboard")
#: `Number.MAX_SAFE_INTEGER`
_MAX_SAFE_INTEGER = 2**53 - 1

STATIC_FOLDER = Path(__file__).parent / "static"
#: longer than any id of ours
_LONGEST_ARGUMENT = 200

#: only what this server itself sends may run: no script of an address, an id or another host. Plotly sets the
#: style attribute of what it draws
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: page → reads its figures
Readers = Mapping[str, Callable[[Choice], dict[str, Any]]]
#: the pages in the order of their tabs: name in the address, title
PAGES = {"hit-rates": "Hit rates", "runs": "Runs", "queues": "Queues", "cost": "Cost"}


@dataclass(frozen=True)
class Faces:
    """What the handlers work with. `act` does what a button asks for; it blocks."""

    readers: Readers
    act: Callable[[Action], dict[str, Any]]
    reads: SharedReads


class _Page(BaseHandler):  # type: ignore[misc]  # Flower ships no types
    """Base of our pages: nothing of them may be kept by a cache, framed, or loaded from elsewhere."""

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
    """Base of what a page's script asks: its errors are JSON, where Flower sends pages."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with why the request was refused."""
        if status_code == HTTPStatus.UNAUTHORIZED:  # browsers are asked for the credentials by a header of Flower's
            super().write_error(status_code, **kwargs)
            return
        error = kwargs.get("exc_info", (None, None))[1]
        told = error.get_message() if isinstance(error, web.HTTPError) else None
        self.finish({"error": told or HTTPStatus(status_code).phrase})


class ShellPage(_Page):
    """A page; it holds no figures of its own, so it opens while Redis is away."""

    def initialize(self, page: str) -> None:
        """Take what Tornado hands over for each request."""
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

    def initialize(self, page: str, faces: Faces) -> None:
        """Take what Tornado hands over for each request."""
        self.page = page
        self.faces = faces

    @web.authenticated
    async def get(self) -> None:
        """Answer with what the address asks for."""
        choice = Choice(*(self._argument(name) for name in ("model", "window", "run")))
        try:
            read = self.faces.readers[self.page]
            self.write(exact_in_browsers(await self.faces.reads.read((self.page, choice), lambda: read(choice))))
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
    """Takes the buttons' requests: from a page of ours, by someone with the credentials, unless read-only."""

    def initialize(self, faces: Faces) -> None:
        """Take what Tornado hands over for each request."""
        self.faces = faces

    def check_xsrf_cookie(self) -> None:
        """Ask for the page's token also where Flower trusts basic auth: browsers send that along by themselves."""
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    @web.authenticated
    async def post(self) -> None:
        """Do what was asked for."""
        if self.application.options.read_only:
            self.set_status(403)
            self.write({"error": "the dashboard is read-only: [dashboard] read_only"})
            return
        action: Action | None = None
        try:
            action = Action.from_json(_json(self.request.body))
            done = await self.faces.reads.act(lambda: self.faces.act(action))
        except ForecacheError as error:
            self.refuse(error)
            return
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            self.refuse(Defect(f"this was not done: {_failures.tell_each(error, action=action and action.name)}"))
            return
        log.info("dashboard.action", action=action.name, model=action.model, run_id=action.run_id)
        self.write(done)


class OutsidePrefix(RequestHandler):
    """Whatever is asked for outside the path under which this is shown, which a proxy may have taken off."""

    def initialize(self, prefix: str) -> None:
        """Take what Tornado hands over for each request."""
        self.prefix = prefix

    def check_xsrf_cookie(self) -> None:
        """Let posts come as far as gets do: there is nothing here."""

    def prepare(self) -> None:
        """Say where everything is."""
        self.set_status(HTTPStatus.NOT_FOUND)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            f"There is nothing here: [dashboard] url_prefix says /{self.prefix}/. A proxy in front must leave that in "
            "the path (nginx: proxy_pass with an address and no path behind it).\n"
        )


class GuardedMetrics(Metrics):  # type: ignore[misc]  # Flower ships no types
    """Flower's own metrics, for those with the credentials; Flower itself shows them to everyone."""

    @web.authenticated
    async def get(self) -> None:
        """Answer with Flower's metrics."""
        await super().get()


def page_handlers(faces: Faces, *, open_metrics: bool) -> list[url]:
    """Return the routes of our pages; templates know them by their names."""
    plotly = files("plotly") / "package_data"
    routes = [url(rf"/{page}", ShellPage, {"page": page}, name=page) for page in PAGES]
    routes += [url(rf"/{page}/data", PageData, {"page": page, "faces": faces}, name=f"{page}-data") for page in PAGES]
    routes += [
        url(r"/runs/actions", RunActions, {"faces": faces}, name="runs-actions"),
        url(r"/forecache/(plotly\.min\.js)", StaticFileHandler, {"path": str(plotly)}, name="forecache-plotly"),
        url(r"/forecache/(.*)", StaticFileHandler, {"path": str(STATIC_FOLDER)}, name="forecache-static"),
    ]
    return routes if open_metrics else [*routes, url(r"/metrics", GuardedMetrics)]


def exact_in_browsers(value: Any) -> Any:
    """Return JSON with the integers as text that JavaScript would round, such as versions that are nanoseconds."""
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
