from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer

from workers.consumer import TaskConsumer
from workers.messages import MAX_MESSAGE_BYTES, problem_of

HEADERS = {"task": "forecache.reconcile", "id": "1"}


def message(payload: Any, headers: Any = HEADERS, body: bytes | None = None) -> Any:
    return SimpleNamespace(body=json.dumps(payload) if body is None else body, headers=headers, payload=payload)


@pytest.mark.parametrize(
    "good",
    [
        message([[], {}, {}]),
        message(([], {}, None)),
        message([[1], {"a": 1}, {"chain": None}], HEADERS | {"timelimit": [None, 3], "shadow": None}),
        message({"task": "forecache.reconcile", "id": "1", "args": [], "kwargs": {}}, {}),
        message([[], {}, {}], HEADERS | {"eta": "2030-01-01T00:00:00.5+05:30", "expires": "2030-01-01T00:00:00Z"}),
        message([[], {}, {}], HEADERS | {"eta": "2030-01-01T00:00:00.123456", "expires": "2030-01-01 00:00:00"}),
    ],
)
def test_messages_of_both_versions_of_celerys_protocol_are_taken(good: Any) -> None:
    assert problem_of(good) is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (message("text"), "no list"),
        (message([[], {}]), "no list"),
        (message([{}, [], {}]), "no list"),
        (message([[], {}, []]), "no list"),
        (message([[], {}, {}], None), "headers"),
        (message([[], {}, {}], {"task": "t"}), "no id"),
        (message([[], {}, {}], {"task": ["t"], "id": "1"}), "names no task"),
        (message([[], {}, {}], HEADERS | {"timelimit": 3}), "time limits"),
        (message({"task": 1, "id": "1"}, {}), "names no task"),
        # forms of ISO 8601 that Python's parser takes and Celery's does not
        (message([[], {}, {}], HEADERS | {"eta": "2030-01-01T00:00+00:00:00"}), "its eta"),
        (message([[], {}, {}], HEADERS | {"expires": "2030-01-01T06:00:00cZ"}), "its expires"),
        (message([[], {}, {}], HEADERS | {"eta": "2030-01-01T00:00:00+00:80"}), "its eta"),
        (message([[], {}, {}], HEADERS | {"expires": "2030-W01-1T00:00:00"}), "its expires"),
        (message([[], {}, {}], body=bytes(MAX_MESSAGE_BYTES + 1)), "over"),
    ],
)
def test_what_is_no_task_is_told_why(bad: Any, said: str) -> None:
    assert said in str(problem_of(bad))


def test_a_lost_connection_that_cannot_be_closed_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # kombu 5.7: a message that nobody had confirmed, and a transport that is gone already
    def close(consumer: Consumer, error: Exception) -> None:
        raise AttributeError("'NoneType' object has no attribute 'hostname'")

    monkeypatch.setattr(Consumer, "on_connection_error_after_connected", close)
    monkeypatch.setattr("workers.consumer.FIRST_PAUSE_S", 0.0)
    consumer = TaskConsumer.__new__(TaskConsumer)
    consumer._turn()
    consumer.on_connection_error_after_connected(ConnectionError("reset by peer"))


@pytest.mark.parametrize("lacking", ["args", "kwargs", "options"])
def test_a_link_that_celery_cannot_send_is_refused(lacking: str) -> None:
    link: dict[str, Any] = {"task": "shop.save", "args": [], "kwargs": {}, "options": {}}
    linked = {"shop.save": "shop"}
    assert problem_of(message([[], {}, {"callbacks": [link]}]), linked) is None
    for damaged in ({**link, lacking: None}, {name: value for name, value in link.items() if name != lacking}):
        assert "no task's signature" in str(problem_of(message([[], {}, {"callbacks": [damaged]}]), linked))
