"""What a real-time task does before it reaches the scorer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.task import Context

from inference.errors import DeadlineExceeded
from inference.monitoring.queues import SENT_AT_HEADER
from tasks.realtime import predict_entities, predict_instances, predict_tensors


@contextmanager
def delivered(task: Any, *, again: bool) -> Iterator[None]:
    task.push_request(delivery_info={"redelivered": again})
    try:
        yield
    finally:
        task.pop_request()


@pytest.mark.parametrize(
    ("task", "arguments"),
    [(predict_entities, {}), (predict_instances, {}), (predict_tensors, {"model": "m", "inputs": {}})],
    ids=["entities", "instances", "tensors"],
)
def test_what_may_have_killed_a_worker_is_not_given_to_another(task: Any, arguments: dict[str, Any]) -> None:
    with delivered(task, again=True), pytest.raises(DeadlineExceeded, match="ended"):
        task.run(**arguments)


@pytest.mark.parametrize(("headers", "logged"), [({}, [("delay", ["a", "c"])]), ({SENT_AT_HEADER: 1000.5}, [])])
def test_accesses_of_other_applications_are_logged_and_not_those_of_the_api_again(
    headers: dict[str, Any], logged: list[Any]
) -> None:
    found: list[Any] = []
    predictions = [
        {"entity_id": "a", "prediction": 1.0},
        {"entity_id": "b", "error": {"code": "unknown-entity"}},
        {"entity_id": "c", "prediction": 2.0},
    ]
    scorer = SimpleNamespace(predict_entities=lambda *_, **__: {"model": "delay", "predictions": predictions})
    recorder = SimpleNamespace(record_asked=lambda *arguments: found.append(arguments))
    task = SimpleNamespace(
        request=Context(headers, delivery_info={}), deployment=SimpleNamespace(scorer=scorer, recorder=recorder)
    )
    result = predict_entities.run.__func__(task, "delay", ["a", "b", "c"])
    assert result["predictions"] == predictions
    assert found == logged
