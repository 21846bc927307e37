"""Decides who gets into the dashboard: people with the credentials, and no page of another site.

The credentials are the settings' name and password, or a password that is generated once. Flower asks its
`BaseHandler` on every page, ours included. Its own answers are not enough: a password with bytes outside ASCII makes it
raise, it does not slow down guesses, and it does not know the host name behind a proxy.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from base64 import b64decode
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from pathlib import Path
from typing import NoReturn

from flower.views import BaseHandler
from tornado.web import Finish, HTTPError

from app.defences import WrongTries, check_site, forwarded_host, subscriber_of
from inference.errors import Forbidden, RateLimited, SettingsError
from inference.settings import Settings
from inference.small_files import read_small_text

FILE_NAME = "dashboard.json"
#: signed by this process: a browser that was let in once does not wait for guesses from its address
KNOWN_COOKIE = "forecache_known"
_KNOWN_DAYS = 30


@dataclass(frozen=True)
class Credentials:
    """A name and a password. `file`: holds the password; None if the settings do."""

    username: str
    password: str = field(repr=False)
    file: Path | None = None

    @property
    def basic_auth(self) -> str:
        """Name and password as Flower compares them."""
        return f"{self.username}:{self.password}"

    def are_in(self, authorization: str) -> bool:
        """Return whether an Authorization header, of any bytes, has them. The time does not tell how much is right."""
        scheme, _, encoded = authorization.strip().partition(" ")
        try:
            shown = b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        digests = (hashlib.sha256(text).digest() for text in (shown, self.basic_auth.encode()))
        return scheme.lower() == "basic" and hmac.compare_digest(*digests)


def find_credentials(settings: Settings) -> Credentials:
    """Return the settings' credentials, or those in `.forecache/dashboard.json`. Makes this file if it is missing.

    It has mode 0600 and is written whole or not at all. The username is always that of the settings.

    Raises:
        SettingsError: basic auth cannot use the name or password, or the file cannot be read or written.
    """
    username = _checked("username", settings.dashboard.username)
    if ":" in username:
        raise SettingsError("[dashboard] username: basic auth allows no ':' in it", field="dashboard.username")
    if settings.dashboard.password is not None:
        return Credentials(username, _checked("password", settings.dashboard.password.get_secret_value()))
    file = settings.state_dir / FILE_NAME
    try:
        return Credentials(username, _kept_password(file, username), file)
    except OSError as error:
        raise SettingsError(f"{file} cannot be used ({error.strerror or error}): set [dashboard] password") from error


def _kept_password(file: Path, username: str) -> str:
    try:
        password = json.loads(read_small_text(file))["password"]
        # others may be able to read a copied file
        file.chmod(0o600)
        return _checked("password", password)
    except FileNotFoundError:
        password = secrets.token_urlsafe(24)
        _write(file, {"username": username, "password": password})
        return password
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{file} holds no password: delete it, and a new one is generated") from error


def _write(file: Path, content: dict[str, str]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
    temporary.replace(file)


def _checked(name: str, value: str) -> str:
    # browsers encode other text in different ways
    if not value or not value.isascii() or not value.isprintable():
        raise SettingsError(f"[dashboard] {name} must be printable ASCII and not empty", field=f"dashboard.{name}")
    return value


class DashboardAccess:
    """Checks credentials, and makes clients with wrong ones wait."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._wrong = WrongTries()

    def admits(self, authorization: str, address: str, *, is_known: bool = False) -> bool:
        """Return whether an Authorization header is right. A wrong one counts against its address.

        `is_known`: this browser was let in before, and does not wait.

        Raises:
            RateLimited: too many wrong ones came from this address; the header was not compared.
        """
        client = subscriber_of(address)
        if not is_known and (wait_s := self._wrong.wait_s(client, authorization)):
            raise RateLimited("too many wrong passwords came from this address", retry_after_s=wait_s)
        is_right = self._credentials.are_in(authorization)
        if not is_right:
            self._wrong.count(client, authorization)
        return is_right

    def guard(self) -> None:
        """Make every page of this process ask for these credentials, and forbid other pages to frame it."""
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
    """Refuse requests from other sites' pages: browsers add basic auth to them.

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
