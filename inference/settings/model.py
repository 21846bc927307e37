"""The settings as typed, frozen values; see `docs/settings.md` for the same list in prose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from inference.errors import UnknownModel
from inference.settings.fallbacks import FallbackSettings
from inference.settings.fields import Duration, Section, is_duration
from inference.settings.parity import ParitySettings

_RATE = re.compile(r"^[1-9][0-9]*/(second|minute|hour|day)$")
_CERT_REQS = ("required", "optional", "none")
#: of a name on the broker; a worker is called after it, where a number would be taken for its own
QUEUE_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,63}$")
BATCH_QUEUE = "batch"
#: the queue of requests, unless a model has its own
REALTIME_QUEUE = "realtime"
MAINTENANCE_QUEUE = "maintenance"
NO_MODEL = "no model is configured: `forecache init` writes a forecache.toml, or add a [models.NAME] section to it"
MODEL_NAME = re.compile(r"^[a-z0-9_-]{1,64}$")


def parse_schedule(value: Any) -> str:
    """Return the schedule unchanged if it is a cron line or a duration.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and (is_duration(value) or croniter.is_valid(value)):
        return value
    raise ValueError(f"{value!r} is no schedule: write a cron line such as '0 3 * * *', or a duration such as '30s'")


def _parse_versions(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("["):  # from an environment variable
        return [int(part) for part in value.strip("[]").split(",") if part.strip()]
    return value


def _parse_poll(value: Any) -> Any:
    return None if value == "never" else value


Schedule = Annotated[str, BeforeValidator(parse_schedule)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _check_redis_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a Redis URL starts with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(value.get_secret_value())
        _ = parts.port
    except ValueError:  # its text quotes what may be the password
        raise ValueError("its port is no number: special characters of a password are %-encoded") from None
    if parts.scheme == "rediss" and parse_qs(parts.query).get("ssl_cert_reqs", [""])[-1] not in _CERT_REQS:
        # Celery insists on one, and calls them CERT_REQUIRED too, which redis-py refuses
        raise ValueError("a rediss:// URL must end in ?ssl_cert_reqs=required (or optional, or none)")
    return value


class RedisSettings(Section):
    """Where Redis is. URLs hold passwords, so they print as stars."""

    url: SecretStr | None = None
    cache_url: SecretStr | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "forecache"

    _check_urls = field_validator("url", "cache_url")(_check_redis_url)


class CelerySettings(Section):
    """The broker, when it is not `redis.url`."""

    broker_url: SecretStr | None = None


class Scope(StrEnum):
    """What a key of the API allows."""

    #: predictions, hit rates, runs and models, as they are
    READ = "read"
    #: jobs: enqueue and cancel them
    ENQUEUE = "enqueue"
    #: features of single entities: store them
    WRITE = "write"
    #: all the rest: start, cancel, resume and publish runs, roll back
    ADMIN = "admin"


class ApiKey(Section):
    """One client's key, of which only the hash is kept (`forecache keys new` makes both).

    `rate`: at most so many requests, such as "600/minute", of one API process; None for no limit.
    """

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)] = [Scope.READ]
    rate: str | None = None

    @field_validator("rate")
    @classmethod
    def _legal_rate(cls, value: str | None) -> str | None:
        if value is not None and not _RATE.match(value):
            raise ValueError(f"{value!r} is no rate: write a number and second, minute, hour or day, as in 600/minute")
        return value


class ApiSettings(Section):
    """The HTTP service. Without `keys` it listens where other machines can reach it only if `allow_remote` is set.

    `processes`: how many serve the port; one uses one core.
    `keys`: by the name of whom they are for; with any, every request but those to /health needs one.
    `client_key`: the key that `forecache predict` and `enqueue` show.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    processes: Annotated[int, Field(ge=1)] = 1
    allow_remote: bool = False
    keys: dict[str, ApiKey] = {}
    client_key: SecretStr | None = None


class DashboardSettings(Section):
    """Flower. Without a password one is generated on first start and kept in `.forecache/`.

    `url_prefix`: where a proxy shows it, such as "flower". `read_only`: nothing can be started or stopped there.
    `open_metrics`: Flower's own `/metrics` asks for no password.
    """

    host: str = "127.0.0.1"
    port: Port = 5555
    username: str = "forecache"
    password: SecretStr | None = None
    url_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]*$")] = ""
    read_only: bool = False
    open_metrics: bool = False


class WorkerSettings(Section):
    """What `forecache up` starts, and how workers share GPUs.

    `gpus`: "auto" (all that are visible), "none", or GPU indexes. `gpu_memory_share`: the fraction of a
    GPU's memory that one process may take; None lets libraries take what they need as they need it. `keras_backend`:
    what Keras computes by; None for what `KERAS_BACKEND` says, else the first that is installed.
    """

    gpus: Literal["auto", "none"] | list[int] = "auto"
    batch_processes: Annotated[int, Field(ge=1, le=64)] = 1
    realtime_processes: Annotated[int, Field(ge=1, le=64)] = 1
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    keras_backend: Literal["tensorflow", "torch", "jax"] | None = None


class LogSettings(Section):
    """How every process logs. `format`: "console" for people, "json" for machines: an object on each line."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class SparkSettings(Section):
    """How a run's Spark driver is set up. `master` and `conf`: as `spark-submit` takes them; conf wins over our own."""

    master: str = "local[*]"
    conf: dict[str, str] = {}


class BatchSettings(Section):
    """A model's runs. Durations in seconds once loaded.

    `ttl`: age limit on reading; `keep`: when Redis forgets. `min_size_ratio`: a run with fewer rows than
    this share of the current generation is not published, nor is one that left out more than
    `max_quarantined_fraction` of its rows, or whose predictions moved by more than `max_drift` (population stability
    index). `parquet_path` and `quarantine_path` may hold `{date}`, `{model}` and `{run_id}`. `resumable`: how long
    what a failed or cancelled run has scored is kept, unless a newer run starts.
    `engine`: what scores the chunks.
    `bytes_per_chunk`: of the source, before compression. `prediction_table`, `feature_table` and `parquet_path` say
    where a run writes: what is served, what real-time answers are computed from, and files. `write_share`: how much
    of the time one worker may keep Redis busy with writing.
    """

    schedule: Schedule | None = None
    timezone: str = "UTC"
    ttl: Duration = 24 * 3600.0
    keep: Duration = 7 * 24 * 3600.0
    prediction_table: bool = True
    feature_table: bool = False
    parquet_path: str | None = None
    rows_per_chunk: Annotated[int, Field(ge=1, le=10_000_000)] = 250_000
    bytes_per_chunk: Annotated[int, Field(ge=1024)] = 512 << 20
    micro_batch_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    write_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 32
    min_size_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    max_quarantined_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_drift: Annotated[float, Field(gt=0)] = 1.0
    quarantine_path: str = ".forecache/quarantine"
    resumable: Duration = 24 * 3600.0
    engine: Literal["celery", "spark"] = "celery"
    spark: SparkSettings = SparkSettings()

    @model_validator(mode="after")
    def _writes_somewhere(self) -> BatchSettings:
        if not (self.prediction_table or self.feature_table or self.parquet_path):
            raise ValueError(
                "a run would write nothing: turn prediction_table or feature_table on, or set parquet_path"
            )
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"{value!r} is no time zone: write one such as 'UTC' or 'Europe/Berlin'") from error
        return value


class RealtimeSettings(Section):
    """A model's answers on demand. Durations in seconds once loaded, `timeout_ms` in milliseconds.

    `default`: the answer of last resort in an outage or past the deadline; None for none.
    `min_recompute_interval`: an answer computed more recently than this is not computed again for its age.
    `stale_while_revalidate`: for so long past its `ttl` an answer is given at once and computed anew behind it
    (RFC 5861); None for never. `unknown_ttl`: how long a process remembers that nobody knows an entity.
    `unknown_entity`: "error" (404), or "defaults" to compute from the feature contract's defaults. `queue`: where its
    requests and its jobs' parts wait; a queue of its own has workers of its own.
    """

    ttl: Duration = 3600.0
    keep: Duration = 24 * 3600.0
    timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 100
    default: float | list[float] | dict[str, Any] | None = None
    min_recompute_interval: Duration = 60.0
    stale_while_revalidate: Duration | None = None
    unknown_ttl: Duration = 2.0
    unknown_entity: Literal["error", "defaults"] = "error"
    max_micro_batch: Annotated[int, Field(ge=1, le=4096)] = 256
    max_in_flight: Annotated[int, Field(ge=1, le=64)] = 2
    queue: str = REALTIME_QUEUE

    @field_validator("queue")
    @classmethod
    def _legal_queue(cls, value: str) -> str:
        if not QUEUE_NAME.match(value):
            raise ValueError(f"{value!r} is no name of a queue: write a letter and up to 63 of a-z, 0-9, _ and -")
        if value in (BATCH_QUEUE, MAINTENANCE_QUEUE):
            raise ValueError(f"the queue {value!r} has workers that compute no requests: take another name")
        return value


class ModelSettings(Section):
    """One model: its folder, its table of features, how it is scheduled and served.

    `allow_code`: formats whose loading runs code, such as pickles, may be loaded.
    `poll_every`: how often workers look for new versions; None for only when they start or are told to.
    `fallbacks`: where features of entities are looked for that are not stored, in this order.
    """

    path: Path
    allow_code: bool = False
    versions: Annotated[
        Literal["latest", "all"] | list[Annotated[int, Field(ge=1)]], BeforeValidator(_parse_versions)
    ] = "latest"
    poll_every: Annotated[Duration | None, BeforeValidator(_parse_poll)] = 10.0
    features: str | None = None
    entity_column: str = "entity_id"
    event_time_column: str | None = None
    batch: BatchSettings = BatchSettings()
    realtime: RealtimeSettings = RealtimeSettings()
    fallbacks: list[FallbackSettings] = []
    parity: ParitySettings = ParitySettings()

    @field_validator("fallbacks")
    @classmethod
    def _different_names(cls, value: list[FallbackSettings]) -> list[FallbackSettings]:
        names = [one.name for one in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two fallbacks are called {name!r}: give each a name of its own")
        return value


class Settings(Section):
    """Everything that one deployment is told. Built by `load_settings`; tests may build it directly."""

    redis: RedisSettings = RedisSettings()
    celery: CelerySettings = CelerySettings()
    api: ApiSettings = ApiSettings()
    dashboard: DashboardSettings = DashboardSettings()
    workers: WorkerSettings = WorkerSettings()
    logs: LogSettings = LogSettings()
    models: dict[str, ModelSettings] = {}

    #: folder that relative paths start from: that of forecache.toml, else the working directory
    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("models")
    @classmethod
    def _legal_names(cls, value: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in value:
            if not MODEL_NAME.match(name):
                raise ValueError(f"model name {name!r} must be 1 to 64 of a-z, 0-9, _ and -")
        return value

    @property
    def root(self) -> Path:
        """Folder that relative paths in the settings start from."""
        return self._root

    @property
    def state_dir(self) -> Path:
        """Folder `.forecache` for what this deployment keeps on this machine."""
        return self._root / ".forecache"

    @property
    def redis_url(self) -> str:
        """URL of the Redis for results, and of the broker unless it has its own; holds the password."""
        return self.redis.url.get_secret_value() if self.redis.url else "redis://127.0.0.1:6379/0"

    @property
    def cache_url(self) -> str:
        """URL of the Redis for predictions and features; holds the password."""
        return self.redis.cache_url.get_secret_value() if self.redis.cache_url else "redis://127.0.0.1:6379/1"

    @property
    def broker_url(self) -> str:
        """URL of the broker; holds the password."""
        return self.celery.broker_url.get_secret_value() if self.celery.broker_url else self.redis_url

    def model(self, name: str | None = None) -> tuple[str, ModelSettings]:
        """Return (name, settings) of a model; None means the only one configured.

        Raises:
            UnknownModel: no model of that name, or several and none was named.
        """
        known = ", ".join(sorted(self.models))
        if not self.models:
            raise UnknownModel(NO_MODEL, field="model")
        if name is None:
            if len(self.models) != 1:
                raise UnknownModel(f"name the model: {len(self.models)} are configured ({known})", field="model")
            name = next(iter(self.models))
        if name not in self.models:
            raise UnknownModel(f"no model {name!r} is configured; known: {known}", field="model")
        return name, self.models[name]

    @property
    def realtime_queues(self) -> tuple[str, ...]:
        """The queues of requests, each once: every model's, in the order of the models."""
        queues = dict.fromkeys(model.realtime.queue for model in self.models.values())
        return tuple(queues) or (REALTIME_QUEUE,)

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues that workers of this deployment serve, as `-Q` and routes call them."""
        return (BATCH_QUEUE, *self.realtime_queues, MAINTENANCE_QUEUE)

    def models_of(self, queues: Iterable[str]) -> list[str]:
        """Return the models whose requests wait in one of these queues."""
        wanted = set(queues)
        return [name for name, model in self.models.items() if model.realtime.queue in wanted]

    def realtime_queue(self, model: str | None) -> str:
        """Return where a model's requests wait; that of all the others when there is no such model, or none named."""
        if model is None and len(self.models) == 1:
            model = next(iter(self.models))
        named = self.models.get(model) if model is not None else None
        return named.realtime.queue if named else REALTIME_QUEUE

    def path(self, path: str | Path) -> Path:
        """Return a path of the settings as an absolute one."""
        return (self._root / Path(path).expanduser()).absolute()
