"""What runs in the Python workers of Spark's executors: one chunk after the other, by a model that stays loaded."""

from __future__ import annotations

from inference.batch import Runs
from inference.engines.runs import build_runs
from inference.logs import configure_logging
from inference.settings import Settings

#: the runs of this process; Spark gives each task its own copy of the settings
_own: tuple[Settings, Runs] | None = None


def score_chunk(settings: Settings, run_id: str, chunk: int) -> None:
    """Score one chunk and stage its predictions. Safe to run twice, also at the same time.

    As in batch workers, what fails is written in the run's record, and the chunk is sent again.
    """
    _runs_for(settings).score(run_id, chunk)


def _runs_for(settings: Settings) -> Runs:
    global _own
    if _own is None or _own[0] != settings:
        configure_logging("spark", form=settings.logs.format, level=settings.logs.level)
        _own = (settings, build_runs(settings))
    return _own[1]
