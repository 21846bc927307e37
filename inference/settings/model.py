"""The settings of one model: its runs, its real-time answers, its fallbacks, and the check that the two agree."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from inference.errors import shown
from inference.settings.fields import Duration, Entities, EntitiesRule, Schedule, Section, entities_rule, parse_list
from inference.settings.registered import RegisteredModel, read_registered

#: a hit rate is foretold from so many days of the access log, or more
_LEAST_RANKED_DAYS = 7
_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
_IDS = re.compile(r"(?<![:\w\\]):ids\b")
#: a queue's name on the broker; no digit comes first, for names of workers start with it and end in a number
QUEUE_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,63}$")
BATCH_QUEUE = "batch"
#: the queue of requests, unless a model has its own
REALTIME_QUEUE = "realtime"
MAINTENANCE_QUEUE = "maintenance"


class _Fallback(Section):
    """The settings of all kinds of fallbacks.

    `name`: in counters and logs; unique within a model. `timeout`: how long a worker waits for an answer. `cache`: how
    long a worker remembers an answer, also an empty one, of up to `cache_entities` entities. `pool`: how many calls may
    run at the same time in a worker, with those that have timed out.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    timeout: Duration = 0.05
    cache: Duration = 5.0
    cache_entities: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    pool: Annotated[int, Field(ge=1, le=64)] = 4


class SqlFallback(_Fallback):
    """A query of a database that SQLAlchemy knows.

    `query` selects the entity column and columns with the names of features, for the entities in the list `:ids`.
    `id_type`: the type of the column that the query compares with `:ids`. `url` may hold a password, so it prints as
    stars.
    """

    kind: Literal["sql"]
    url: SecretStr
    query: str
    id_type: Literal["text", "integer"] = "text"

    @field_validator("query")
    @classmethod
    def _asks_for_ids(cls, value: str) -> str:
        if not _IDS.search(value):
            raise ValueError("it must ask for the entities in :ids, as in SELECT … WHERE entity_id IN :ids")
        return value


class FunctionFallback(_Fallback):
    """A function of the user's. It takes a list of entity ids, and returns a pandas DataFrame of those that it knows.

    `function`: `package.module:name`. This setting allows the real-time workers to run its code.
    """

    kind: Literal["function"]
    function: str

    @field_validator("function")
    @classmethod
    def _dotted(cls, value: str) -> str:
        if not _FUNCTION.match(value):
            raise ValueError(f"{shown(value)} names no function: write package.module:name")
        return value


FallbackSettings = Annotated[SqlFallback | FunctionFallback, Field(discriminator="kind")]
FALLBACK_KINDS: dict[str, type[Section]] = {"sql": SqlFallback, "function": FunctionFallback}


def _parse_poll(value: Any) -> Any:
    return None if value == "never" else value


class SparkSettings(Section):
    """The Spark driver of a run. `master` and `conf`: as for `spark-submit`; `conf` overrides our own options."""

    master: str = "local[*]"
    conf: dict[str, str] = {}


class RaySettings(Section):
    """The Ray driver of a run. `address`: as for `ray.init`, by default that of RAY_ADDRESS; without either, each run
    starts a Ray of its own on the driver's machine. A GPU's actor has the GPU alone, unless `gpus_per_actor` is a part;
    None: 1 if the cluster has GPUs, else 0. `cpus_per_actor`: of an actor without a GPU.
    """

    address: Annotated[str, Field(min_length=1)] | None = None
    cpus_per_actor: Annotated[float, Field(gt=0, le=1024)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0, le=64)] | None = None


class BatchSettings(Section):
    """A model's runs. Durations in seconds once loaded.

    `ttl`: the age limit of readers; `keep`: when Redis forgets. A run is not published if it has fewer rows than
    `min_size_ratio` of the current generation, left out more than `max_quarantined_fraction` of its rows, if its
    predictions moved by more than `max_drift` (population stability index), or if the decisions of more than
    `max_flips` of the entities flip (numbers are decided at `flips_threshold`). `hold`: a run that passed its gates
    waits for `batch publish`. `parquet_path` and `quarantine_path` may hold `{date}`, `{model}` and `{run_id}`.
    `resumable`: how long the scored rows of a failed or cancelled run are kept, which a newer run ends, and how long a
    held run waits. `engine`: the engine that scores the chunks. `bytes_per_chunk`: bytes of the source, before
    compression. A run writes to `prediction_table`, which is served, to `feature_table`, from which real-time answers
    are computed, and to files in `parquet_path`. `write_share`: the share of the time in which one worker may keep
    Redis busy with writes. `entities`: the rows that a whole run scores, as `entities_rule` reads it; `new_entities`:
    also those that the run that serves did not have. `delta`: scheduled runs score only the rows whose vectors changed,
    and every run keeps what tells so in `delta_path`; each `full_every`-th scheduled run scores all rows. A table
    that is no Parquet is written as Parquet into `snapshot_path`, for each run.
    """

    schedule: Schedule | None = None
    timezone: str = "UTC"
    entities: Entities = "all"
    new_entities: bool = True
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
    max_flips: Annotated[float, Field(ge=0, le=1)] | None = None
    flips_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    hold: bool = False
    quarantine_path: str = ".forecache/quarantine"
    resumable: Duration = 24 * 3600.0
    delta: bool = False
    full_every: Annotated[int, Field(ge=1, le=100_000)] = 7
    delta_path: Annotated[str, Field(min_length=1)] = ".forecache/delta"
    snapshot_path: Annotated[str, Field(min_length=1)] = ".forecache/snapshots"
    engine: Literal["celery", "spark", "ray"] = "celery"
    spark: SparkSettings = SparkSettings()
    ray: RaySettings = RaySettings()

    @property
    def rule(self) -> EntitiesRule:
        """The rule that `entities` states."""
        return entities_rule(self.entities)

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
        refused = f"{shown(value)} is no time zone: write one such as 'UTC' or 'Europe/Berlin'"
        # files that are no zone: they differ between machines, or count leap seconds
        if value in ("localtime", "posixrules", "Factory") or value.startswith("right/"):
            raise ValueError(refused)
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # the last for a folder of zones
            raise ValueError(refused) from error
        return value


class RealtimeSettings(Section):
    """A model's answers on demand. Durations in seconds once loaded, `timeout_ms` in milliseconds.

    `default`: the last answer in an outage or past the deadline; None for none. `min_recompute_interval`: a younger
    answer is not computed again for its age. `stale_while_revalidate`: for so long after its `ttl`, an answer is given
    at once and computed again in the background (RFC 5861); None for never. `unknown_ttl`: how long a process remembers
    that an entity is unknown. `unknown_entity`: "error" (404), or "defaults" to compute from the feature contract's
    defaults. `queue`: the queue of its requests and jobs; another queue than the default needs workers of its own.
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
            raise ValueError(f"{shown(value)} is no name of a queue: write a letter and up to 63 of a-z, 0-9, _ and -")
        if value in (BATCH_QUEUE, MAINTENANCE_QUEUE):
            raise ValueError(f"the queue {shown(value)} has workers that compute no requests: take another name")
        return value


class ParitySettings(Section):
    """A check that batch and real time agree: computes answers again the other way.

    `every`: None for never. `sample`: how many answers of each of the two it takes.
    """

    every: Duration | None = None
    sample: Annotated[int, Field(ge=1, le=10_000)] = 100


class AccessLogSettings(Section):
    """The log of accesses, which holds no ids: from it come hit-rate curves, and the entities of active sets.

    `days`: how many days of the sample of accesses are kept; `asked_days`: how many days' filters of the entities that
    were asked for.
    """

    enabled: bool = True
    days: Annotated[int, Field(ge=1, le=90)] = 14
    asked_days: Annotated[int, Field(ge=1, le=90)] = 30


class ModelSettings(Section):
    """One model: its folder, its table of features, its runs and its real-time answers.

    `path`: the folder, or a model of an MLflow registry. `allow_code`: allow formats whose load runs code, such as
    pickles. `signature`: the name of a SavedModel's signature; None for `serving_default`, or its only one.
    `activate`: which version answers: the newest good one, or none before it is labelled stable. `poll_every`: how
    often workers look for new versions; None for only at the start or on request. `features_of`: another model, whose
    stored features answers on demand are computed from; None for its own ones. `rows`: an entity has one row in the
    table, or several, of which the newest by `event_time_column` counts. `fallbacks`: the sources of features that
    are not stored, in this order.
    """

    path: Path
    allow_code: bool = False
    signature: str | None = None
    versions: Annotated[
        Literal["latest", "all"] | list[Annotated[int, Field(ge=1, le=2**63 - 1)]], BeforeValidator(parse_list)
    ] = "latest"
    activate: Literal["newest", "by-label"] = "newest"
    poll_every: Annotated[Duration | None, BeforeValidator(_parse_poll)] = 10.0
    features: str | None = None
    features_of: str | None = None
    entity_column: str = "entity_id"
    event_time_column: str | None = None
    rows: Literal["one", "newest"] = "one"
    batch: BatchSettings = BatchSettings()
    realtime: RealtimeSettings = RealtimeSettings()
    fallbacks: list[FallbackSettings] = []
    parity: ParitySettings = ParitySettings()
    access_log: AccessLogSettings = AccessLogSettings()

    @field_validator(
        "path", "features", "features_of", "entity_column", "event_time_column", "signature", mode="before"
    )
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty: write it, or leave the line out")
        return value

    @field_validator("path")
    @classmethod
    def _folder_or_registered(cls, value: Path) -> Path:
        return Path(str(read_registered(value) or value))

    @property
    def registered(self) -> RegisteredModel | None:
        """The model of an MLflow registry that `path` names; None for a folder."""
        return read_registered(self.path)

    @model_validator(mode="after")
    def _one_place_names_the_version(self) -> ModelSettings:
        if self.registered is not None and self.versions != "latest":
            raise ValueError(
                f"versions is for folders of versions: name the version in path, as in models:/{self.registered.name}/3"
            )
        return self

    @model_validator(mode="after")
    def _newest_by_a_column(self) -> ModelSettings:
        if self.rows == "newest" and self.event_time_column is None:
            raise ValueError('rows = "newest" needs event_time_column: set it to the column that dates the rows')
        return self

    @model_validator(mode="after")
    def _writes_no_features_of_others(self) -> ModelSettings:
        if self.features_of is not None and self.batch.feature_table:
            raise ValueError(
                f"features_of = {shown(self.features_of)} reads the features of another model, which its own runs and "
                "loads write: turn batch.feature_table off here"
            )
        return self

    @model_validator(mode="after")
    def _answers_the_rest(self) -> ModelSettings:
        missing = self._missing_for(self.batch.rule)
        if missing:
            raise ValueError(f"batch.entities = {shown(self.batch.entities)} {missing}")
        return self

    def _missing_for(self, rule: EntitiesRule) -> str | None:
        """Return what the other settings lack for a rule; None for nothing."""
        log = self.access_log
        if rule.is_all:
            return None
        if not self.batch.prediction_table:
            return "chooses what is served from the prediction table: turn batch.prediction_table on"
        if not self.batch.feature_table and not self.fallbacks and self.features_of is None:
            return (
                "leaves entities to real time, which needs their features: set batch.feature_table = true or "
                "features_of, or add a fallback"
            )
        if not log.enabled:
            return "needs the access log: set access_log.enabled = true"
        days = _LEAST_RANKED_DAYS if rule.asked_within_s is None else math.ceil(rule.asked_within_s / 86400)
        return f"needs access_log.asked_days = {days} or more" if log.asked_days < days else None

    @field_validator("fallbacks")
    @classmethod
    def _different_names(cls, value: list[FallbackSettings]) -> list[FallbackSettings]:
        names = [one.name for one in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two fallbacks are called {shown(name)}: give each a name of its own")
        return value
