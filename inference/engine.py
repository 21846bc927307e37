"""What scores a run's chunks."""

from __future__ import annotations

from enum import StrEnum


class Engine(StrEnum):
    """Who scores a run's chunks. A run keeps its engine when it is resumed."""

    #: batch workers, a message a chunk
    CELERY = "celery"
    #: executors of a Spark cluster
    SPARK = "spark"
