"""The page of hit rates inside Flower, and the JSON it refreshes itself from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from flower.views import BaseHandler
from tornado import web
from tornado.web import StaticFileHandler, url

from inference.errors import ForecacheError, StoreUnavailable
from inference.logs import get_logger

log = get_logger(__name__)

STATIC_FOLDER = Path(__file__).parent / "static"

#: the page asks again after 2 s, so an answer later than this is worth less than the word that it is late
READ_TIMEOUT_S = 3.0


class SharedRead:
    """Runs a blocking read in a thread, one at a time: pages that ask meanwhile share its answer."""

    def __init__(self, read: Callable[[], dict[str, Any]], executor: Executor) -> None:
        self._read = read
        self._executor = executor
        self._running: asyncio.Future[dict[str, Any]] | None = None

    async def __call__(self) -> dict[str, Any]:
        """Return the figures.

        Raises:
            StoreUnavailable: they cannot be read, or not within 3 seconds (the read itself goes on).
        """
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(self._executor, self._read)
        try:
            # shielded: a page that is closed must not take the answer from the others
            return await asyncio.wait_for(asyncio.shield(self._running), READ_TIMEOUT_S)
        except TimeoutError as error:
            raise StoreUnavailable(f"the cache Redis did not answer within {READ_TIMEOUT_S:.0f} s") from error


class _Page(BaseHandler):  # type: ignore[misc]  # Flower ships no types
    """Base of our pages: nothing of them may be kept by a cache, framed, or loaded from elsewhere."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Frame-Options", "DENY")


class HitRatesPage(_Page):
    """The page; it holds no figures of its own, so it opens while Redis is away."""

    @web.authenticated
    def get(self) -> None:
        """Render the page."""
        self.render("hit-rates.html")


class HitRatesData(_Page):
    """The figures as JSON; 503 with the reason while they cannot be read."""

    read: SharedRead

    def initialize(self, read: SharedRead) -> None:
        """Take what Tornado hands over for each request."""
        self.read = read

    @web.authenticated
    async def get(self) -> None:
        """Answer with the overview."""
        try:
            self.write(await self.read())
        except ForecacheError as error:
            log.warning("dashboard.no_figures", reason=error.message)
            self.set_status(503)
            self.write({"error": error.message})


def page_handlers(read: SharedRead) -> list[url]:
    """Return the routes of our pages; templates know them by their names."""
    return [
        url(r"/hit-rates", HitRatesPage, name="hit-rates"),
        url(r"/hit-rates/data", HitRatesData, {"read": read}, name="hit-rates-data"),
        url(r"/forecache/(.*)", StaticFileHandler, {"path": str(STATIC_FOLDER)}, name="forecache-static"),
    ]
