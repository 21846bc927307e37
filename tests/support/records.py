"""Records of runs and generations for tests of what only shows them."""

from __future__ import annotations

from typing import Any

from inference.batch import RunState, RunView
from inference.batch.records import RunRecord, Trigger
from inference.store import Manifest


def run_view(*, state: RunState, **facts: Any) -> RunView:
    """A run of the model `delay`, asked for at 1000.0 and looked at 60 s later."""
    record = RunRecord(
        run_id="delay-1",
        model="delay",
        state=state,
        trigger=Trigger.API,
        source="t.parquet",
        created_at=1000.0,
        **facts,
    )
    return RunView.of(record, now=1060.0)


def manifest_of(number: int, *, created_at: float, deadline: float) -> Manifest:
    """The manifest of a generation without rows."""
    return Manifest(number, (), 8, 1, "hash", None, created_at, deadline, 0)
