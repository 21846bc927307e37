"""Messages of older senders are understood: a task asks for no more than it did in the release before."""

from __future__ import annotations

import inspect

import pytest

import tasks.batch
import tasks.echo
import tasks.maintenance
import tasks.realtime
from inference.settings import Settings
from tasks.celery_app import make_celery

#: task → the arguments that every sender gives; one that is added later needs a default
GIVEN = {
    "predict_entities": [],
    "predict_instances": [],
    "predict_explained": [],
    "predict_tensors": ["model", "inputs"],
    "predict_job_part": ["job_id", "part"],
    "score_chunk": ["run_id", "chunk_number"],
    "check_parity": ["model"],
    "start_run": [],
    "prepare_run": ["run_id"],
    "reconcile": [],
    "compare_run": ["run_id"],
    "drive_run": ["run_id"],
    "forget_entity": ["model", "entity_id"],
    "echo": ["text"],
}
OURS = {name: task for name, task in make_celery(Settings()).tasks.items() if name.startswith("forecache.")}


def test_every_task_is_known_here() -> None:
    assert set(OURS) == {f"forecache.{name}" for name in GIVEN}
    assert {task.__module__ for task in OURS.values()} == {
        module.__name__ for module in (tasks.batch, tasks.echo, tasks.maintenance, tasks.realtime)
    }


@pytest.mark.parametrize("name", GIVEN)
def test_a_task_needs_only_the_arguments_that_older_senders_give(name: str) -> None:
    parameters = inspect.signature(OURS[f"forecache.{name}"].run).parameters.values()
    assert [each.name for each in parameters if each.default is inspect.Parameter.empty] == GIVEN[name]
