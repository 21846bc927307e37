"""Who may open the dashboard: the settings' name and password, else a password generated once."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path

from inference.errors import SettingsError
from inference.settings import Settings
from inference.small_files import read_small_text

FILE_NAME = "dashboard.json"


@dataclass(frozen=True)
class Credentials:
    """A name and a password. `file` is where the password stands; None when the settings gave it."""

    username: str
    password: str = field(repr=False)
    file: Path | None = None

    @property
    def basic_auth(self) -> str:
        """The two as Flower compares them."""
        return f"{self.username}:{self.password}"

    def are_in(self, authorization: str) -> bool:
        """Tell whether an Authorization header shows them, whatever its bytes, in a time that tells nothing of them."""
        scheme, _, encoded = authorization.strip().partition(" ")
        try:
            shown = b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        digests = (hashlib.sha256(text).digest() for text in (shown, self.basic_auth.encode()))
        return scheme.lower() == "basic" and hmac.compare_digest(*digests)


def find_credentials(settings: Settings) -> Credentials:
    """Return the settings' credentials, or those in `.forecache/dashboard.json`, which is made when missing.

    The file has mode 0600 and is written whole or not at all. The username is always that of the settings.

    Raises:
        SettingsError: name or password cannot be used with basic auth, or the file cannot be read or written.
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
        # a copied file may have been left readable to others
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
    # browsers do not agree on the bytes that they make of other text
    if not value or not value.isascii() or not value.isprintable():
        raise SettingsError(f"[dashboard] {name} must be printable ASCII and not empty", field=f"dashboard.{name}")
    return value
