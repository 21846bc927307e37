"""What somebody writes into Redis in the place of a worker's answer: a real API process, and a worker that is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.api.problems import problem_of
from inference.errors import ERRORS_BY_CODE, LONGEST_FIELD, LONGEST_MESSAGE, ForecacheError, reported_error
from inference.monitoring.presence import Presence, WorkerBeat
from inference.redis.clients import Client
from tasks.celery_app import make_celery
from tests.support.attacked_api import AttackedApi, attacked_api

pytestmark = pytest.mark.integration

FOREIGN = "foreign words: postgres://svc@10.0.0.5/x"
HUGE = FOREIGN * 5_000
#: in the place of an error, and of each part of one
ODD: tuple[Any, ...] = (7, True, 1.5, "x", [], [1], {"a": 1}, HUGE, None)


class Forger:
    """Takes the tasks of requests from the broker and answers each with what it is told to."""

    def __init__(self, api: AttackedApi) -> None:
        settings = api.stack.settings
        self.payload: dict[str, Any] = {}
        self._client = Client.from_url(settings.redis_url)
        self._key_of = make_celery(settings).backend.get_key_for_task
        self._queue = f"{settings.redis.prefix}:{settings.redis.prefix}.realtime"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._forge)
        beat = WorkerBeat(
            name="w@h", process="realtime", queues=("realtime",), host="h", pid=7, release=None, started_at=0.0,
            ready=True, versions={},
        )  # fmt: skip
        Presence(api.stack.deployment.cache, api.stack.deployment.keys, gone_after_s=3600).beat(beat)

    def __enter__(self) -> Forger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()

    def _forge(self) -> None:
        while not self._stopped.is_set():
            taken: Any = self._client.brpop([self._queue], 1)
            if taken:
                task_id = json.loads(taken[1])["headers"]["id"]
                self._client.publish(self._key_of(task_id), json.dumps({**self.payload, "task_id": task_id}))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedApi]:
    with attacked_api(tmp_path_factory.mktemp("forged")) as api:
        yield api


@pytest.fixture(scope="module")
def forger(api: AttackedApi) -> Iterator[Forger]:
    with Forger(api) as forger:
        yield forger


def row(error: Any) -> dict[str, Any]:
    items = [{"entity_id": None, "error": error}]
    return {"status": "SUCCESS", "result": {"model": "delay", "model_version": 1, "predictions": items}}


def raised(kind: Any, message: Any) -> dict[str, Any]:
    return {"status": "FAILURE", "result": {"exc_type": kind, "exc_message": message, "exc_module": "x"}}


PAYLOADS = [
    *(row({"code": code, "message": HUGE, "field": HUGE}) for code in ERRORS_BY_CODE),
    *(row({"code": code, "message": FOREIGN}) for code in (*ODD[:-2], FOREIGN)),
    *(row(odd) for odd in ODD[:-1]),
    *(raised(cls.__name__, [HUGE]) for cls in ERRORS_BY_CODE.values()),
    *(raised("ModelUnavailable", odd) for odd in ODD),
    *(raised(odd, FOREIGN) for odd in ODD),
    *({"status": "SUCCESS", "result": odd} for odd in ODD),
    *({"status": "SUCCESS", "result": {"predictions": odd}} for odd in ODD),
    *({"status": "SUCCESS", "result": {"predictions": [odd]}} for odd in ODD),
    {"status": "REVOKED", "result": HUGE},
]


def test_whatever_stands_there_a_client_hears_of_our_trouble_in_our_words_alone(
    api: AttackedApi, forger: Forger
) -> None:
    for number, payload in enumerate(PAYLOADS):
        forger.payload = payload
        asked = {"instances": [{"x": 1.0}], "timeout_ms": 20_000}
        for answer in (
            api.request("POST", "/predict", json=asked),
            api.request("GET", f"/predict/unknown-{number}?timeout_ms=20000"),
        ):
            told = answer.json()
            items = told.get("predictions", [told])
            for problem in (one.get("error", one) for one in items):
                assert problem["code"] in ERRORS_BY_CODE, (payload, told)
                assert problem["code"] not in ("unauthorized", "forbidden", "rate-limited", "too-heavy")
                assert len(problem.get("field") or "") <= LONGEST_FIELD + 1
                if problem["status"] >= 500:
                    assert "foreign" not in answer.text, (payload, told)
            assert len(answer.content) < 2 * LONGEST_MESSAGE
    api.assert_serves()
    assert len(api.log()) < 1 << 20


@pytest.mark.parametrize("cls", ERRORS_BY_CODE.values(), ids=ERRORS_BY_CODE)
def test_what_a_request_can_correct_keeps_its_words_and_all_else_has_ours(cls: type[ForecacheError]) -> None:
    problem = problem_of(reported_error(cls("column 'x' is missing", field="x").to_json()))
    is_of_the_request = problem["status"] in (400, 404, 409, 415)
    assert ("column 'x'" in problem["detail"], problem.get("field") == "x") == (is_of_the_request, is_of_the_request)
    assert problem["status"] < 500 or problem["code"] not in ("error", "stale-attempt")
