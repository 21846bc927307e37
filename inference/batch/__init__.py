"""Runs: they score a whole table, or some of its rows, and publish the predictions. The broker is injected.

A run goes through these modules: `runs` opens it, `reconciler` takes each next step, `plan` cuts its source into
chunks, `worker` claims a chunk and `scoring` scores it into `sinks`, `publishing` checks the `gates` and publishes.
Only `ledger` changes a run's keys in Redis; `records` has the forms of what it keeps.
"""

from inference.batch.comparison.differences import DiffOptions, RunDiff
from inference.batch.gates import Gate
from inference.batch.records import Engine, RunDetails, RunState, RunView, Trigger
from inference.batch.runs import Runs, Serving
from inference.batch.schedule import current_slot, slot_after, slot_at
from inference.batch.selection import read_entities

__all__ = [
    "DiffOptions",
    "Engine",
    "Gate",
    "RunDetails",
    "RunDiff",
    "RunState",
    "RunView",
    "Runs",
    "Serving",
    "Trigger",
    "current_slot",
    "read_entities",
    "slot_after",
    "slot_at",
]
