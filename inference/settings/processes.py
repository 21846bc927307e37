"""The settings of Redis, of the broker, and of the processes of a deployment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from inference.errors import SettingsError, shown
from inference.settings.fields import Duration, Section, Size, parse_duration, parse_list
from inference.settings.server_urls import broker_url as read_broker_url
from inference.settings.server_urls import cache_url as read_cache_url
from inference.settings.server_urls import is_cluster, redis_url

_RATE = re.compile(r"^[1-9][0-9]*/(second|minute|hour|day)$")
#: the name of another application's task or queue
_NAME_OF_OTHERS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*")
_HOST_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"\*|https?://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
#: a root path must not start so: a path would not show whether a proxy has stripped it
_OWN_PATHS = ("predict", "predictions", "features", "runs", "models", "health", "v1", "v2")

Port = Annotated[int, Field(ge=1, le=65535)]

#: time for the open requests of a stopping API process to finish; then as long for its open gRPC calls
OPEN_REQUESTS_S = 5


def _parse_drain(value: Any) -> float:
    return 0.0 if value in (0, "0", "0s") and value is not False else parse_duration(value)


def _in_one_form(value: SecretStr | None, read: Callable[[str], str]) -> SecretStr | None:
    return None if value is None else SecretStr(read(value.get_secret_value()))


class RedisSettings(Section):
    """The Redis servers. URLs have the form that redis-py reads, except a cluster's.

    They may hold passwords, so they print as stars.
    """

    url: SecretStr | None = None
    cache_url: SecretStr | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "forecache"

    @property
    def key_prefix(self) -> str:
        """What the keys in `cache_url` begin with: in a cluster, `prefix` in braces (`inference/redis/keys.py`)."""
        spread = self.cache_url is not None and is_cluster(self.cache_url.get_secret_value())
        return f"{{{self.prefix}}}" if spread else self.prefix

    @field_validator("url")
    @classmethod
    def _read_url(cls, value: SecretStr | None) -> SecretStr | None:
        return _in_one_form(value, redis_url)

    @field_validator("cache_url")
    @classmethod
    def _read_cache_url(cls, value: SecretStr | None) -> SecretStr | None:
        return _in_one_form(value, read_cache_url)


class CelerySettings(Section):
    """The broker, if it is not `redis.url`, and the tasks of other applications that may follow ours.

    `linked_tasks`: name of a task → its queue. Workers refuse a message whose links, chain or chord name another one.
    """

    broker_url: SecretStr | None = None
    linked_tasks: dict[str, str] = {}

    @field_validator("linked_tasks")
    @classmethod
    def _tasks_of_others(cls, value: dict[str, str]) -> dict[str, str]:
        for name, queue in value.items():
            if not _NAME_OF_OTHERS.fullmatch(name) or name.startswith(("forecache.", "celery.")):
                raise ValueError(
                    f"{shown(name)} cannot be linked: name a task of another application, as in 'shop.save'"
                )
            if not _NAME_OF_OTHERS.fullmatch(queue):
                raise ValueError(f"{shown(queue)} is no queue's name: write the queue that {shown(name)} waits in")
        return value

    @field_validator("broker_url")
    @classmethod
    def _read_broker_url(cls, value: SecretStr | None) -> SecretStr | None:
        return _in_one_form(value, read_broker_url)


class Scope(StrEnum):
    """A permission of a key of the API."""

    #: read predictions, hit rates, runs and models
    READ = "read"
    #: enqueue and cancel jobs
    ENQUEUE = "enqueue"
    #: store features of single entities
    WRITE = "write"
    #: forget entities, and lift that
    FORGET = "forget"
    #: all other requests: start, cancel, resume and publish runs, roll back
    ADMIN = "admin"


class ApiKey(Section):
    """The hash of one client's key (`forecache keys new` makes both).

    `rate`: the limit of requests to one API process, such as "600/minute"; None for no limit. A request counts 1; one
    with a body counts its rows, and 1 more for each 8 KiB.
    """

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)] = [Scope.READ]
    rate: str | None = None

    @field_validator("rate")
    @classmethod
    def _legal_rate(cls, value: str | None) -> str | None:
        if value is not None and not _RATE.match(value):
            raise ValueError(
                f"{shown(value)} is no rate: write a number and second, minute, hour or day, as in 600/minute"
            )
        return value


class ApiSettings(Section):
    """The HTTP service. Without `keys`, other machines can reach it only if `allow_remote` is set.

    `hosts`: the host names that it answers to without keys, beside `localhost` and addresses: "api", "*.example.com",
    or "*" for all. `cors_origins`: pages of these origins may use it, such as "https://shop.example.com"; "*" for all.
    `processes`: how many processes serve the port; each uses one core. `keys`: by the client's name; with any key,
    every request but those to /health needs one. `client_key`: the key of `forecache predict` and `enqueue`.
    `root_path`: its path behind a proxy, such as "/forecache", whether the proxy strips it or not. `keep_alive`: how
    many seconds an idle connection stays open; longer than at the proxy, so that the proxy never uses a closing one.
    `max_connections`: the limit of one process; None for 10 000, or for as many as its limit of open files allows.
    `drain`: how many seconds a process serves on after SIGTERM, with readiness 503, so that balancers turn away from
    it; 0 for none. `stop_timeout`: how many seconds the platform waits after SIGTERM until it kills; None: unknown.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    processes: Annotated[int, Field(ge=1)] = 1
    allow_remote: bool = False
    hosts: list[str] = []
    cors_origins: list[str] = []
    keys: dict[str, ApiKey] = {}
    client_key: SecretStr | None = None
    root_path: str = ""
    keep_alive: Duration = 75.0
    drain: Annotated[float, BeforeValidator(_parse_drain)] = 5.0
    stop_timeout: Duration | None = None
    max_connections: Annotated[int, Field(ge=1)] | None = None

    @property
    def longest_stop_s(self) -> float:
        """The seconds from SIGTERM until the last open request, over HTTP and then over gRPC, has had its time."""
        return self.drain + 2 * OPEN_REQUESTS_S

    @field_validator("root_path")
    @classmethod
    def _legal_root_path(cls, value: str) -> str:
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError(
                f"{shown(value)} is no path: write it as in /forecache, with a / at its start, none at its end"
            )
        if value.split("/")[1:2] and value.split("/")[1] in _OWN_PATHS:
            raise ValueError(f"{shown(value)} begins as paths of the API do: choose another name")
        return value

    @field_validator("hosts")
    @classmethod
    def _legal_hosts(cls, value: list[str]) -> list[str]:
        for name in value:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"{shown(name)} is no name of a host: write it without scheme, port and path, as browsers send it: "
                    "api.example.com, *.example.com, xn--bcher-kva.example"
                )
        return [name.lower().removesuffix(".") for name in value]

    @field_validator("cors_origins")
    @classmethod
    def _legal_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{shown(origin)} is no origin: write scheme and host, as in https://shop.example.com:8443"
                )
        # browsers leave out the port that the scheme has anyway
        return [re.sub(r"^(http:.*):80$|^(https:.*):443$", r"\1\2", origin.lower()) for origin in value]

    @model_validator(mode="after")
    def _no_open_doors(self) -> ApiSettings:
        if "*" in self.cors_origins and not self.keys:
            raise ValueError(
                'cors_origins: "*" without keys lets every page that somebody opens start runs: name the origins, or '
                "give keys (`forecache keys new NAME`)"
            )
        return self


class GrpcSettings(Section):
    """gRPC, in each process of the API and with its keys; off without `port`.

    `certificate`, `private_key`: PEM files for TLS; without them the port speaks plain text.
    """

    host: str = "127.0.0.1"
    port: Port | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    @model_validator(mode="after")
    def _whole_pair(self) -> GrpcSettings:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both, or none")
        return self


class DashboardSettings(Section):
    """Flower. Without a password, the first start generates one and keeps it in `.forecache/`.

    `url_prefix`: its path behind a proxy, such as "flower". `read_only`: it starts and stops nothing. `open_metrics`:
    Flower's own `/metrics` needs no password. `max_tasks`, `max_workers`: how many it remembers.
    `forget_workers_after`: seconds after which a dead worker leaves Flower's list and metrics.
    """

    host: str = "127.0.0.1"
    port: Port = 5555
    username: str = "forecache"
    password: SecretStr | None = None
    url_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]*$")] = ""
    read_only: bool = False
    open_metrics: bool = False
    max_tasks: Annotated[int, Field(ge=1)] = 10_000
    max_workers: Annotated[int, Field(ge=1)] = 1_000
    forget_workers_after: Duration = 3600.0


class WorkerSettings(Section):
    """The workers and listeners that `forecache up` starts, their GPUs, and the limits of a load.

    `gpus`: "auto" (all visible ones), "none", or GPU indexes. `gpu_memory_share`: the fraction of a GPU's memory that
    one process may take; None: libraries take memory when they need it. `keras_backend`: None for `KERAS_BACKEND`, else
    the first that is installed. `load_memory`, `load_timeout`: the limits for the load of one version; memory in bytes,
    None for a limit by the size of its files and of the machine. `engine_hosts`: the hosts that a `remote.toml` may
    name, as `host`, `*.domain` or `host:port`; None for all.
    """

    gpus: Annotated[Literal["auto", "none"] | list[int], BeforeValidator(parse_list)] = "auto"
    batch_processes: Annotated[int, Field(ge=1, le=64)] = 1
    realtime_processes: Annotated[int, Field(ge=1, le=64)] = 1
    listen_processes: Annotated[int, Field(ge=1, le=64)] = 1
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    keras_backend: Literal["tensorflow", "torch", "jax"] | None = None
    load_memory: Size | None = None
    load_timeout: Duration = 600.0
    engine_hosts: list[str] | None = None


class MlflowSettings(Section):
    """The MLflow registry of the models whose path is `models:/…`.

    `tracking_uri`: the server; None for `MLFLOW_TRACKING_URI`, else the one on this machine. It may hold a password.
    `folder`: where each machine keeps the versions that it has downloaded, in a folder for each model.
    """

    tracking_uri: SecretStr | None = None
    folder: Path = Path(".forecache/mlflow")


class LogSettings(Section):
    """The logs of every process. `format`: "console" for people, "json" for machines, an object on each line."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


def require_allowed(api: ApiSettings, host: str | None = None, where: str = "the socket's address") -> None:
    """Refuse an address of the API that other machines can reach, unless there are keys or the settings allow it.

    `host`: another address than the settings', and `where` it comes from.

    Raises:
        SettingsError: there are no `[api.keys.NAME]`, and `[api] allow_remote` is not set.
    """
    if not api.allow_remote and not api.keys and not is_loopback(host or api.host):
        raise SettingsError(
            f"{'[api] host' if host is None else where} {shown(host or api.host)} can be reached from other machines: "
            "use 127.0.0.1, give keys (`forecache keys new NAME`), or set allow_remote = true",
            field="api.host",
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable_url(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a service at this address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
