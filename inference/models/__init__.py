"""Models: their versions on disk, the records of these in Redis, and the copies that worker processes load."""

from inference.models.host import ModelHost
from inference.models.loaded import LoadedModel, ScoredRows, prediction_values, score_rows
from inference.models.loading import (
    Inspect,
    inspect_in_subprocess,
    inspect_versions,
    record_of_version,
    record_to_serve,
)
from inference.models.micro_batch import MicroBatch, MicroBatches
from inference.models.registry import ModelRegistry, VersionRecord
from inference.models.rollout import Rollout
from inference.models.versions import find_versions

__all__ = [
    "Inspect",
    "LoadedModel",
    "MicroBatch",
    "MicroBatches",
    "ModelHost",
    "ModelRegistry",
    "Rollout",
    "ScoredRows",
    "VersionRecord",
    "find_versions",
    "inspect_in_subprocess",
    "inspect_versions",
    "prediction_values",
    "record_of_version",
    "record_to_serve",
    "score_rows",
]
