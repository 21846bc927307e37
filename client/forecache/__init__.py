"""Client of Forecache: predictions from a service's own code.

`Client` and `AsyncClient` ask the HTTP API. `LocalReader` reads in the process, beside the server's package.
`forecache.celery` sends Celery tasks, for applications that have Celery.
"""

from forecache.answers import Failed, Forgotten, HitRate, Prediction, Predictions, Run, Update
from forecache.async_client import AsyncClient, AsyncJob
from forecache.client import Client, Job
from forecache.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    EntityForgotten,
    ForecacheError,
    NoConnection,
    NotAuthorized,
    NotForecache,
    NotFound,
    Overloaded,
    PredictionFailed,
    RateLimited,
    ServerFailed,
    Unavailable,
    UnknownEntity,
    UnknownModel,
)
from forecache.local_reader import LocalPredictions, LocalReader, ReaderState
from forecache.version import __version__

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BadRequest",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "EntityForgotten",
    "Failed",
    "ForecacheError",
    "Forgotten",
    "HitRate",
    "Job",
    "LocalPredictions",
    "LocalReader",
    "NoConnection",
    "NotAuthorized",
    "NotForecache",
    "NotFound",
    "Overloaded",
    "Prediction",
    "PredictionFailed",
    "Predictions",
    "RateLimited",
    "ReaderState",
    "Run",
    "ServerFailed",
    "Unavailable",
    "UnknownEntity",
    "UnknownModel",
    "Update",
    "__version__",
]
