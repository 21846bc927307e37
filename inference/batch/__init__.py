"""Runs: plan, ledger, scoring, gates, publishing. Pure rules plus Redis scripts; the broker is injected.

`runs` is the door. A run goes through `preparation`, then `work` (one chunk in a worker) many times, then
`finalising`; `reconciler` decides what is due, and `ledger` is the only one that changes a run's keys.
"""

from inference.batch.details import RunDetails
from inference.batch.engine import Engine
from inference.batch.gates import Gate
from inference.batch.partial_request import read_entities
from inference.batch.records import RunState, RunView, Trigger
from inference.batch.runs import Runs, Serving
from inference.batch.schedule import current_slot, slot_after, slot_at

__all__ = [
    "Engine",
    "Gate",
    "RunDetails",
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
