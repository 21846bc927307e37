"""What commands share: the settings, the deployment, and an optional MODEL before the other argument."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference.errors import StoreUnavailable, UnknownFormat

if TYPE_CHECKING:
    from inference.deployment import Broker, Deployment
    from inference.settings import Settings

_UNREADABLE = "an address that cannot be read"


def load_settings() -> Settings:
    """Return the settings of this folder. Pydantic is imported here, so that `--help` need not wait for it.

    Raises:
        SettingsError: the settings are wrong.
    """
    from inference import settings

    return settings.load_settings()


def log_warnings_only() -> None:
    """Keep stdout for what was asked, whatever the code that a command runs in its own process may log."""
    from inference.logs import configure_logging

    configure_logging("cli", level="warning")


def model_and(first: str, second: str | None, settings: Settings) -> tuple[str, str]:
    """Return (model, the other argument) of a command that takes `[MODEL] OTHER`.

    Raises:
        UnknownModel: the model is not configured, or it was left out though several are.
    """
    model, other = (None, first) if second is None else (first, second)
    return settings.model(model)[0], other


def models_of(name: str | None, settings: Settings) -> list[str]:
    """Return the one model named, or all that are configured.

    Raises:
        UnknownModel: it is not configured.
    """
    return sorted(settings.models) if name is None else [settings.model(name)[0]]


@contextmanager
def open_deployment() -> Iterator[Deployment]:
    """Give this folder's deployment; an outage inside the block ends in one clear sentence.

    Raises:
        SettingsError: the settings are wrong.
        StoreUnavailable: Redis does not answer.
    """
    from inference.deployment import Deployment
    from inference.redis.clients import WORKER

    settings = load_settings()
    log_warnings_only()
    with clear_outage(settings), Deployment(settings, WORKER, _broker) as deployment:
        yield deployment


def _broker(settings: Settings) -> Broker:
    # Celery takes longer to import than most commands take
    from tasks.broker import CeleryBroker

    return CeleryBroker(settings)


@contextmanager
def clear_outage(settings: Settings) -> Iterator[None]:
    """Say in one sentence what to do about an outage of Redis.

    Raises:
        StoreUnavailable: Redis does not answer, or not with what it was asked for.
        UnknownFormat: another release wrote what was asked for.
    """
    try:
        yield
    except UnknownFormat:
        raise
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{_no_redis(settings, error.__cause__)} ({error.message})") from error


def _no_redis(settings: Settings, cause: BaseException | None) -> str:
    import redis

    if isinstance(cause, redis.AuthenticationError | redis.exceptions.NoPermissionError):
        return f"Redis at {place_of(settings.cache_url)} refuses the password: correct [redis] cache_url"
    if isinstance(cause, redis.ResponseError):
        return f"Redis at {place_of(settings.cache_url)} refuses to do it: {cause}"
    if settings.redis.url is None:
        return "no Redis: [redis] url is not set, and no `forecache up` runs in this folder"
    return f"Redis at {place_of(settings.cache_url)} does not answer: start it, or `forecache up`"


def place_of(url: str) -> str:
    """Return what of a URL may be shown, such as `127.0.0.1:6379/1`: never user, password or options."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return _UNREADABLE
    if "@" in parts.path + parts.query + parts.fragment:  # a password that was not %-encoded lies in there
        return _UNREADABLE
    if parts.scheme == "unix":
        return parts.path
    # neither a virtual host of RabbitMQ nor a database number is a secret
    return f"{host or 'localhost'}{f':{port}' if port else ''}{parts.path}"
