"""One deployment's log lines in JSON: a request is found in the worker, a run in its chunks, and no secret anywhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.flights import write_flights
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

#: their sum is no finite float32, so the model's answer is refused, and the worker says so
TOO_MUCH = {"a": 3e38, "b": 3e38}
PROCESSES = ("gpu", "realtime", "maintenance", "beat", "api", "dashboard")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("logs")
    with Stack(folder, write_flights(folder) + '[logs]\nformat = "json"\n') as stack:
        stack.start(*PROCESSES)
        stack.wait_ready()
        wait_for(lambda: "dashboard.ready" in stack.log("dashboard"), "the dashboard", 30)
        yield stack


def lines(stack: Stack, process: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.log(process).splitlines()]


def lines_of(stack: Stack, process: str, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the lines of an event that have these fields, once there is one."""
    wanted = {"event": event, **fields}
    return wait_for(
        lambda: [line for line in lines(stack, process) if wanted.items() <= line.items()], f"{event} of {process}", 20
    )


def test_a_workers_line_names_the_request_that_it_worked_for(stack: Stack) -> None:
    headers = {"X-Request-ID": "checkout-7"}

    def is_computed() -> bool:
        answer = httpx.post(f"{stack.url}/predict", json={"instances": [TOO_MUCH]}, headers=headers, timeout=20)
        return "prediction-failed" in answer.text

    wait_for(is_computed, "a worker that takes the request in time", 20)
    line, *_ = lines_of(stack, "realtime", "prediction.failed", request_id="checkout-7")
    assert line["task_id"]
    assert line["process"] == "realtime"


def test_a_line_of_a_job_names_the_job_and_the_request_that_it_came_with(stack: Stack) -> None:
    headers = {"X-Request-ID": "nightly-mail"}
    sent = httpx.post(f"{stack.url}/predictions", json={"instances": [TOO_MUCH]}, headers=headers, timeout=20)
    (line,) = lines_of(stack, "realtime", "prediction.failed", request_id="nightly-mail")
    assert (line["job_id"], line["part"]) == (sent.json()["task_id"], 0)


def test_lines_of_a_run_name_the_run_and_the_task_in_every_process(stack: Stack) -> None:
    run_id = httpx.post(f"{stack.url}/runs").raise_for_status().json()["run_id"]
    assert stack.wait_run(run_id)["state"] == "published"
    (scored,) = lines_of(stack, "gpu", "chunk.scored", run_id=run_id, chunk=0)
    assert scored["task_id"]
    assert lines_of(stack, "maintenance", "run.planned", run_id=run_id)
    assert lines_of(stack, "maintenance", "run.published", run_id=run_id)


def test_every_line_of_every_process_is_an_object_and_none_holds_a_password(stack: Stack) -> None:
    for process in PROCESSES:
        stack.stop(process, signal.SIGTERM)
    for process in PROCESSES:
        found = lines(stack, process)
        assert found
        assert all({"timestamp", "level", "event", "process"} <= line.keys() for line in found)
        assert "sesame" not in stack.log(process)
    assert {line["process"] for line in lines(stack, "gpu")} == {"gpu"}
