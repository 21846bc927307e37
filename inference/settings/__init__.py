"""Settings: reads `forecache.toml` and `FORECACHE_<SECTION>__<KEY>`, checks them, and names misspelt keys."""

from inference.settings.fields import EntitiesRule, parse_duration
from inference.settings.loading import find_embedded_redis, load_settings, read_toml, settings_file, variables_unread
from inference.settings.model import (
    BATCH_QUEUE,
    MAINTENANCE_QUEUE,
    REALTIME_QUEUE,
    AccessLogSettings,
    BatchSettings,
    FallbackSettings,
    FunctionFallback,
    ModelSettings,
    RaySettings,
    RealtimeSettings,
    SqlFallback,
)
from inference.settings.processes import (
    ApiKey,
    ApiSettings,
    CelerySettings,
    DashboardSettings,
    GrpcSettings,
    LogSettings,
    MlflowSettings,
    RedisSettings,
    Scope,
    WorkerSettings,
)
from inference.settings.settings import Settings
from inference.settings.streams import StreamSettings

__all__ = [
    "BATCH_QUEUE",
    "MAINTENANCE_QUEUE",
    "REALTIME_QUEUE",
    "AccessLogSettings",
    "ApiKey",
    "ApiSettings",
    "BatchSettings",
    "CelerySettings",
    "DashboardSettings",
    "EntitiesRule",
    "FallbackSettings",
    "FunctionFallback",
    "GrpcSettings",
    "LogSettings",
    "MlflowSettings",
    "ModelSettings",
    "RaySettings",
    "RealtimeSettings",
    "RedisSettings",
    "Scope",
    "Settings",
    "SqlFallback",
    "StreamSettings",
    "WorkerSettings",
    "find_embedded_redis",
    "load_settings",
    "parse_duration",
    "read_toml",
    "settings_file",
    "variables_unread",
]
