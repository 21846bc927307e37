"""Shared by commands: the settings, the deployment, arguments with their completion, and generated options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from app.local.lock import find_up
from inference.errors import ForecacheError, StoreUnavailable, UnknownFormat

if TYPE_CHECKING:
    from inference.deployment import Broker, Deployment
    from inference.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])

#: seconds that completion may take: a person waits for it between two keys
_COMPLETION_S = 0.5
_COMPLETED_RUNS = 20
_UNREADABLE = "an address that cannot be read"


# --- settings and deployment ---


def load_settings() -> Settings:
    """Return the settings of this folder. Imports Pydantic only here, so that `--help` does not wait for it.

    Raises:
        SettingsError: the settings are wrong.
    """
    from inference import settings

    return settings.load_settings()


def log_warnings_only() -> None:
    """Log only warnings and errors, so that no log line of a command's work stands in its output."""
    from inference.logs import configure_logging

    configure_logging("cli", level="warning")


def model_and(first: str, second: str | None, settings: Settings) -> tuple[str, str]:
    """Return (model, the other argument) of a command that takes `[MODEL] OTHER`.

    Raises:
        UnknownModel: the model is not configured, or several are and none is given.
    """
    model, other = (None, first) if second is None else (first, second)
    return settings.model(model)[0], other


def models_of(name: str | None, settings: Settings) -> list[str]:
    """Return the given model, or all configured models.

    Raises:
        UnknownModel: the given model is not configured.
    """
    return sorted(settings.models) if name is None else [settings.model(name)[0]]


@contextmanager
def open_deployment() -> Iterator[Deployment]:
    """Open this folder's deployment. A Redis outage inside the block becomes one clear sentence.

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
    # importing Celery takes longer than most commands
    from tasks.broker import CeleryBroker

    return CeleryBroker(settings)


@contextmanager
def clear_outage(settings: Settings) -> Iterator[None]:
    """Add the fix to the error of a Redis outage.

    Raises:
        StoreUnavailable: Redis does not answer, or refuses.
        UnknownFormat: another release wrote the data.
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
    if fix := certificate_fix(cause, "[redis] cache_url"):
        return f"Redis at {place_of(settings.cache_url)} has a certificate of an unknown authority: {fix}"
    if isinstance(cause, redis.ResponseError):
        return f"Redis at {place_of(settings.cache_url)} refuses to do it: {cause}"
    if settings.redis.url is None:
        up = find_up(settings.state_dir)
        running = "no `forecache up` runs in this folder"
        if up is not None:
            running = f"that of `forecache up` (pid {up.pid}) does not answer: ask again in a moment"
        return f"no Redis: [redis] url is not set, and {running}"
    if settings.redis.cache_url is None:
        return f"[redis] url is set and cache_url is not: set it too, nothing answers at {place_of(settings.cache_url)}"
    return f"Redis at {place_of(settings.cache_url)} does not answer: start it, or `forecache up`"


def certificate_fix(cause: BaseException | None, setting: str) -> str | None:
    """Return the fix if an outage is a certificate that this machine does not trust, else None."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(cause):
        return None
    return f"add ssl_ca_certs=/path/ca.pem to {setting}, the file of the authority that signed it"


def place_of(url: str) -> str:
    """Return the public part of a URL, such as `127.0.0.1:6379/1`: never user, password or options."""
    from inference.settings.server_urls import is_cluster, seeds_of

    if is_cluster(url):
        return ",".join(f"{host}:{port}" for host, port in seeds_of(url))
    from inference.settings.sentinel_urls import is_sentinel, read_sentinel_url

    try:
        if is_sentinel(url):
            return read_sentinel_url(url).place
        address = urlsplit(url)
        host, port = address.hostname, address.port
    except ValueError:
        return _UNREADABLE
    if "@" in address.path + address.query + address.fragment:  # a password that was not %-encoded is in there
        return _UNREADABLE
    if address.scheme == "unix":
        return address.path
    # neither a virtual host of RabbitMQ nor a database number is secret
    return f"{host or 'localhost'}{f':{port}' if port else ''}{address.path}"


# --- arguments ---


def complete_model(incomplete: str) -> list[str]:
    """Return the configured models that begin like this. Completes nothing if the settings are wrong."""
    try:
        return [name for name in sorted(load_settings().models) if name.startswith(incomplete)]
    except ForecacheError:
        return []


def complete_run(incomplete: str) -> list[str]:
    """Return the newest runs that begin like this. Completes nothing if Redis does not answer quickly."""
    from inference.redis.clients import Patience, open_client
    from inference.redis.keys import Keys

    try:
        settings = load_settings()
        with (
            open_client(settings.cache_url, Patience(_COMPLETION_S), tag=settings.redis.key_prefix) as client,
            client.pipeline(transaction=False) as pipe,
        ):
            for model in sorted(settings.models):
                pipe.zrange(Keys(settings.redis.key_prefix).runs(model), 0, _COMPLETED_RUNS - 1, desc=True)
            found = [run_id.decode() for run_ids in pipe.execute() for run_id in run_ids]
    except (ForecacheError, ValueError):
        return []
    return [run_id for run_id in found if run_id.startswith(incomplete)]


_OPTIONAL = "Optional if one model is configured."

#: MODEL of a command for one model
OneModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=_OPTIONAL, autocompletion=complete_model)]
#: MODEL of a command for one model or all
AnyModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="By default all models.", autocompletion=complete_model)
]
#: --model of a command whose arguments are entities
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help=_OPTIONAL, autocompletion=complete_model)
]
#: RUN
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", autocompletion=complete_run)]


def with_options(
    options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Callable[[Function], Function]:
    """Give a command one option per entry (name → annotation), after its arguments. It takes them as `**kwargs`.

    `defaults`: by name; None for an option that is not in it.
    """

    def add(command: Function) -> Function:
        signature = inspect.signature(command, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(name, keyword, default=(defaults or {}).get(name), annotation=annotation)
            for name, annotation in options.items()
        ]
        given = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        arguments = [each for each in given if each.kind is not keyword]
        last = [each for each in given if each.kind is keyword]
        command.__signature__ = signature.replace(parameters=[*arguments, *added, *last])  # type: ignore[attr-defined]
        return command

    return add
