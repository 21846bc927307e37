"""Decides who gets into Flower: who shows the credentials, and no page of another site that only a browser lends them.

Flower asks its `BaseHandler` on every page, ours included. Its own answers are not enough: bytes outside ASCII in a
password raise in it, it never slows guesses down, and it does not know the host that a proxy was asked for.
"""

from __future__ import annotations

from http import HTTPStatus
from math import ceil
from typing import NoReturn

from flower.views import BaseHandler
from tornado.web import Finish, HTTPError

from app.dashboard.credentials import Credentials
from app.defences import WrongTries, check_site, forwarded_host, subscriber_of
from inference.errors import Forbidden, RateLimited

#: signed by this process: a browser that has been let in once does not wait for what others guess at its address
KNOWN_COOKIE = "forecache_known"
_KNOWN_DAYS = 30


class Entrance:
    """Checks credentials, and makes those wait who show wrong ones."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._wrong = WrongTries()

    def admits(self, authorization: str, address: str, *, is_known: bool = False) -> bool:
        """Tell whether an Authorization header is right; a wrong one counts against its address. `is_known`: no wait.

        Raises:
            RateLimited: too many wrong ones came from there, so that this one is not looked at.
        """
        client = subscriber_of(address)
        if not is_known and (wait_s := self._wrong.wait_s(client, authorization)):
            raise RateLimited("too many wrong passwords came from this address", retry_after_s=wait_s)
        is_right = self._credentials.are_in(authorization)
        if not is_right:
            self._wrong.count(client, authorization)
        return is_right

    def guard(self) -> None:
        """Have every page of this process let in these credentials alone, and be shown in no frame of another page."""
        set_flowers_headers = BaseHandler.set_default_headers

        def set_default_headers(page: BaseHandler) -> None:
            set_flowers_headers(page)
            page.set_header("X-Frame-Options", "DENY")

        BaseHandler.get_current_user = lambda page: self._let_in(page)
        BaseHandler.check_xsrf_cookie = check_page
        BaseHandler.set_default_headers = set_default_headers

    def _let_in(self, page: BaseHandler) -> bool:
        shown = page.request.headers.get("Authorization")
        is_known = page.get_signed_cookie(KNOWN_COOKIE) is not None
        try:
            if shown is None or not self.admits(shown, page.request.remote_ip or "", is_known=is_known):
                raise HTTPError(HTTPStatus.UNAUTHORIZED)
        except RateLimited as error:
            _refuse_for(page, error)
        if not is_known:
            page.set_signed_cookie(KNOWN_COOKIE, "1", _KNOWN_DAYS, httponly=True, samesite="Lax")
        return True


def check_page(page: BaseHandler) -> None:
    """Refuse what another site's page asks for: browsers send basic auth along by themselves.

    Raises:
        HTTPError: 403.
    """
    headers = page.request.headers
    hosts = [page.request.host, *forwarded_host(headers.get("X-Forwarded-Host"))]
    try:
        check_site(headers.get("Sec-Fetch-Site"), headers.get("Origin"), hosts)
    except Forbidden as error:
        raise HTTPError(HTTPStatus.FORBIDDEN, error.message) from error


def _refuse_for(page: BaseHandler, error: RateLimited) -> NoReturn:
    wait_s = ceil(error.retry_after_s or 1)
    page.set_status(HTTPStatus.TOO_MANY_REQUESTS)
    page.set_header("Retry-After", str(wait_s))
    page.set_header("Content-Type", "text/plain; charset=utf-8")
    raise Finish(f"{error.message}: wait {wait_s} s\n")
