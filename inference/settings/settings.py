"""All settings of a deployment as typed, frozen values; `docs/settings.md` lists them in prose."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationInfo, field_validator

from inference.errors import UnknownModel, quoted, shown
from inference.settings.fields import Section
from inference.settings.model import BATCH_QUEUE, MAINTENANCE_QUEUE, REALTIME_QUEUE, ModelSettings
from inference.settings.processes import (
    ApiSettings,
    CelerySettings,
    DashboardSettings,
    GrpcSettings,
    LogSettings,
    MlflowSettings,
    RedisSettings,
    WorkerSettings,
)
from inference.settings.streams import STREAM_NAME, StreamSettings

NO_MODEL = "no model is configured: `forecache init` writes a forecache.toml, or add a [models.NAME] section to it"
MODEL_NAME = re.compile(r"^[a-z0-9_-]{1,64}$")


class Settings(Section):
    """All settings of one deployment. `load_settings` builds them; tests may build them directly."""

    redis: RedisSettings = RedisSettings()
    celery: CelerySettings = CelerySettings()
    api: ApiSettings = ApiSettings()
    grpc: GrpcSettings = GrpcSettings()
    dashboard: DashboardSettings = DashboardSettings()
    workers: WorkerSettings = WorkerSettings()
    mlflow: MlflowSettings = MlflowSettings()
    logs: LogSettings = LogSettings()
    models: dict[str, ModelSettings] = {}
    streams: dict[str, StreamSettings] = {}

    #: the folder of relative paths: that of forecache.toml, else the working directory
    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("models")
    @classmethod
    def _legal_names(cls, value: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in value:
            if not MODEL_NAME.match(name):
                raise ValueError(f"model name {shown(name)} must be 1 to 64 of a-z, 0-9, _ and -")
        return value

    @field_validator("models")
    @classmethod
    def _owners_of_features(cls, value: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name, model in value.items():
            owner = model.features_of
            if owner is None:
                continue
            others = [one for one, other in value.items() if one != name and other.features_of is None]
            if owner not in others:
                near = difflib.get_close_matches(owner, others, n=1, cutoff=0.5)
                hint = f"did you mean {shown(near[0])}?" if near else f"there is {', '.join(others) or 'none'}"
                raise ValueError(
                    f"features_of of model {name}: {shown(owner)} is no other model with features of its own; {hint}"
                )
        return value

    @field_validator("streams")
    @classmethod
    def _legal_streams(cls, value: dict[str, StreamSettings]) -> dict[str, StreamSettings]:
        for name in value:
            if not STREAM_NAME.match(name):
                raise ValueError(f"stream name {shown(name)} must be 1 to 64 of a-z, 0-9, _ and -")
        return value

    @field_validator("streams")
    @classmethod
    def _models_of_streams(cls, value: dict[str, StreamSettings], info: ValidationInfo) -> dict[str, StreamSettings]:
        models, redis = info.data.get("models"), info.data.get("redis", RedisSettings())
        if models is None:  # they are wrong, and that error comes first
            return value
        known = ", ".join(sorted(models)) or "none"
        for name, stream in value.items():
            if stream.model is None and len(models) != 1:
                raise ValueError(f"{name} names no model: set model to one of {known}")
            if stream.model is not None and stream.model not in models:
                raise ValueError(f"{name}: no model {shown(stream.model)} is configured; known: {known}")
            if stream.url is None and redis.key_prefix != redis.prefix:
                raise ValueError(f"{name} needs url: a stream lies in one Redis, and cache_url is a cluster")
        return value

    @classmethod
    def of_folder(cls, root: Path, **sections: Any) -> Settings:
        """Return settings with a folder for relative paths."""
        settings = cls(**sections)
        settings._root = root
        return settings

    @property
    def root(self) -> Path:
        """The folder of relative paths in the settings."""
        return self._root

    @property
    def state_dir(self) -> Path:
        """The folder `.forecache`, for this deployment's files on this machine."""
        return self._root / ".forecache"

    @property
    def redis_url(self) -> str:
        """The URL of the Redis for results, and by default for the broker; holds the password."""
        return self.redis.url.get_secret_value() if self.redis.url else "redis://127.0.0.1:6379/0"

    @property
    def cache_url(self) -> str:
        """The URL of the Redis for predictions and features; holds the password."""
        return self.redis.cache_url.get_secret_value() if self.redis.cache_url else "redis://127.0.0.1:6379/1"

    @property
    def broker_url(self) -> str:
        """The URL of the broker; holds the password."""
        return self.celery.broker_url.get_secret_value() if self.celery.broker_url else self.redis_url

    def model(self, name: str | None = None) -> tuple[str, ModelSettings]:
        """Return (name, settings) of a model; None means the only one configured.

        Raises:
            UnknownModel: there is no model of that name, or there are several and the name is None.
        """
        known = ", ".join(sorted(self.models))
        if not self.models:
            raise UnknownModel(NO_MODEL, field="model")
        if name is None:
            if len(self.models) != 1:
                raise UnknownModel(f"name the model: {len(self.models)} are configured ({known})", field="model")
            name = next(iter(self.models))
        if name not in self.models:
            raise UnknownModel(f"no model {quoted(name)} is configured; known: {known}", field="model")
        return name, self.models[name]

    def features_owner(self, model: str) -> str:
        """Return the model under whose name the stored features of a model are: nearly always its own."""
        of_model = self.models.get(model)
        return model if of_model is None or of_model.features_of is None else of_model.features_of

    def stream_url(self, name: str) -> str:
        """Return the URL of a stream's Redis or Kafka; holds the password."""
        url = self.streams[name].url
        return url.get_secret_value() if url else self.cache_url

    def stream_model(self, name: str) -> str:
        """Return the model under whose name the features are stored that a stream updates."""
        return self.features_owner(self.model(self.streams[name].model)[0])

    def sharing_features(self, owner: str) -> list[str]:
        """Return the models whose answers are computed from one model's stored features, that one first."""
        return [owner, *(name for name, model in self.models.items() if model.features_of == owner)]

    @property
    def realtime_queues(self) -> tuple[str, ...]:
        """The queues of requests, each once, in the order of the models."""
        queues = dict.fromkeys(model.realtime.queue for model in self.models.values())
        return tuple(queues) or (REALTIME_QUEUE,)

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues of this deployment's workers, by their names in `-Q` and in routes."""
        return (BATCH_QUEUE, *self.realtime_queues, MAINTENANCE_QUEUE)

    def models_of(self, queues: Iterable[str]) -> list[str]:
        """Return the models with requests in one of these queues."""
        wanted = set(queues)
        return [name for name, model in self.models.items() if model.realtime.queue in wanted]

    def realtime_queue(self, model: str | None) -> str:
        """Return the queue of a model's requests. None: of the only model; the default queue for any other name."""
        if model is None and len(self.models) == 1:
            model = next(iter(self.models))
        of_model = self.models.get(model) if model is not None else None
        return of_model.realtime.queue if of_model else REALTIME_QUEUE

    def model_folder(self, model: str) -> Path:
        """Return the folder of a model's versions: the user's, or the one for versions that come from a registry."""
        of_model = self.models[model]
        return self.path(of_model.path if of_model.registered is None else self.mlflow.folder / model)

    @property
    def mlflow_uri(self) -> str:
        """The URI of the MLflow server; may hold a password."""
        given = self.mlflow.tracking_uri
        return given.get_secret_value() if given else os.environ.get("MLFLOW_TRACKING_URI") or "http://127.0.0.1:5000"

    def path(self, path: str | Path) -> Path:
        """Return a path of the settings as an absolute one."""
        return (self._root / Path(path).expanduser()).absolute()
