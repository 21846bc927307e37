"""Decides who gets into Flower: who shows the credentials, and no page of another site that only a browser lends them.

Flower asks its `BaseHandler` on every page, ours included. Its own answers are not enough: bytes outside ASCII in a
password raise in it, it never slows guesses down, and it does not know the host that a proxy was asked for.
"""

from __future__ import annotations

from http import HTTPStatus
from math import ceil

from flower.views import BaseHandler
from tornado.web import Finish, HTTPError

from app.browsers import check_site, forwarded_host
from app.dashboard.credentials import Credentials
from app.guesses import WrongTries, subscriber_of
from inference.errors import Forbidden

#: signed by this process: a browser that has been let in once does not wait for what others guess at its address
KNOWN_COOKIE = "forecache_known"
_KNOWN_DAYS = 30


def guard(credentials: Credentials) -> None:
    """Have every page of this process let in these credentials alone, and be shown in no frame of another page."""
    wrong = WrongTries()
    set_flowers_headers = BaseHandler.set_default_headers

    def set_default_headers(page: BaseHandler) -> None:
        set_flowers_headers(page)
        page.set_header("X-Frame-Options", "DENY")

    def get_current_user(page: BaseHandler) -> bool:
        shown = page.request.headers.get("Authorization")
        if shown is None:
            raise HTTPError(HTTPStatus.UNAUTHORIZED)
        client = subscriber_of(page.request.remote_ip or "")
        is_known = page.get_signed_cookie(KNOWN_COOKIE) is not None
        if not is_known and (wait_s := wrong.wait_s(client, shown)):
            _refuse_for(page, wait_s)
        if not credentials.are_in(shown):
            wrong.count(client, shown)
            raise HTTPError(HTTPStatus.UNAUTHORIZED)
        if not is_known:
            page.set_signed_cookie(KNOWN_COOKIE, "1", _KNOWN_DAYS, httponly=True, samesite="Lax")
        return True

    BaseHandler.get_current_user = get_current_user
    BaseHandler.check_xsrf_cookie = check_page
    BaseHandler.set_default_headers = set_default_headers


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


def _refuse_for(page: BaseHandler, wait_s: float) -> None:
    page.set_status(HTTPStatus.TOO_MANY_REQUESTS)
    page.set_header("Retry-After", str(ceil(wait_s)))
    page.set_header("Content-Type", "text/plain; charset=utf-8")
    raise Finish(f"Too many wrong passwords came from this address: wait {ceil(wait_s)} s\n")
