"""What a call of the client sends, when it sends it again, and which error its end is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from forecache import (
    BadRequest,
    DeadlineExceeded,
    ForecacheError,
    NoConnection,
    NotForecache,
    Overloaded,
    Unavailable,
    UnknownEntity,
)
from forecache.calls import PROBLEM, Answer, Caller, Pause, Send

OK = Answer(200, {"content-type": "application/json"}, b'{"x": 1}')


def problem(status: int, code: str, *, field: str | None = None, retry_after: str = "") -> Answer:
    body = {"status": status, "code": code, "detail": f"{code} it is", "field": field, "request_id": "r-1"}
    return Answer(status, {"content-type": PROBLEM, "retry-after": retry_after}, json.dumps(body).encode())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def end_of(
    answers: list[Answer], *, retries: int = 2, took_s: float = 0.0, **options: Any
) -> tuple[Any, list[Send | Pause]]:
    """Drive a call by these answers; return what it returns or raises, and its steps."""
    clock = Clock()
    steps = Caller("http://here", 5.0, retries, "0.1.0", clock).call("GET", "/x", **options)
    taken: list[Send | Pause] = []
    left = iter(answers)
    try:
        step = next(steps)
        while True:
            taken.append(step)
            if isinstance(step, Pause):
                clock.now += step.seconds
                step = next(steps)
            else:
                clock.now += took_s
                step = steps.send(next(left))
    except StopIteration as end:
        assert next(left, None) is None
        return end.value, taken
    except ForecacheError as error:
        assert next(left, None) is None
        return error, taken


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(404, "unknown-entity"), UnknownEntity),
        (problem(503, "workers-unavailable"), Unavailable),
        (problem(503, "overloaded"), Overloaded),
        (problem(503, "deadline-exceeded"), DeadlineExceeded),
        (Answer(502, {"content-type": "text/html"}, b"<html>"), Unavailable),
        (Answer(200, {"content-type": "text/html", "server": "Apache"}, b"<html>"), NotForecache),
        (Answer(404, {"content-type": "text/html"}, b"<html>"), NotForecache),
        (Answer(None, error="refused", sent=False), NoConnection),
        (Answer(None, error="slow", timed_out=True), DeadlineExceeded),
    ],
)
def test_each_answer_is_an_error_of_its_kind(answer: Answer, kind: type[ForecacheError]) -> None:
    error, _ = end_of([answer], retries=0)
    assert type(error) is kind, error
    assert "\n" not in error.message


def test_an_error_says_all_that_the_problem_says() -> None:
    error, _ = end_of([problem(400, "bad-features", field="age"), Answer(503)])
    assert isinstance(error, BadRequest)
    assert (error.code, error.field, error.status, error.request_id) == ("bad-features", "age", 400, "r-1")
    assert error.message == "age: bad-features it is"


def test_something_else_at_the_address_is_named() -> None:
    error, _ = end_of([Answer(200, {"content-type": "text/html", "server": "Apache"}, b"<html>")])
    assert error.message == (
        "http://here answers 200 by Apache (text/html), which is not Forecache's API: check the URL"
    )


def test_it_waits_as_long_as_the_server_says() -> None:
    value, steps = end_of([problem(503, "overloaded", retry_after="2"), OK])
    assert value == {"x": 1}
    assert [step.seconds for step in steps if isinstance(step, Pause)] == [2.0]


def test_pauses_that_the_server_does_not_name_grow() -> None:
    _, steps = end_of([Answer(None, error="refused", sent=False)] * 3)
    first, second = (step.seconds for step in steps if isinstance(step, Pause))
    assert 0.05 <= first <= 0.1
    assert 0.1 <= second <= 0.2


@pytest.mark.parametrize("retry_after", ["5", "60"])
def test_what_could_not_end_in_time_is_not_begun(retry_after: str) -> None:
    error, steps = end_of([problem(503, "overloaded", retry_after=retry_after)])
    assert error.retry_after_s == float(retry_after)
    assert len(steps) == 1


def test_each_try_gets_the_time_that_is_left() -> None:
    _, steps = end_of([problem(503, "overloaded", retry_after="1"), OK], took_s=1.5)
    assert [step.timeout_s for step in steps if isinstance(step, Send)] == [5.0, 2.5]


@pytest.mark.parametrize(("sent", "tries"), [(True, 1), (False, 3)])
def test_what_may_not_happen_twice_is_repeated_only_if_it_was_never_sent(sent: bool, tries: int) -> None:
    _, steps = end_of([Answer(None, error="broken", sent=sent)] * tries, repeatable=False)
    assert sum(isinstance(step, Send) for step in steps) == tries


@pytest.mark.parametrize("answer", [problem(400, "bad-input"), problem(409, "conflict"), problem(500, "internal")])
def test_what_would_be_the_same_again_is_not_repeated(answer: Answer) -> None:
    version = [Answer(503)] if answer.status == 400 else []
    _, steps = end_of([answer, *version])
    assert [step.path for step in steps if isinstance(step, Send)][:1] == ["/x"]
    assert not any(isinstance(step, Pause) for step in steps)


@pytest.mark.parametrize(
    ("server", "notes"),
    [("0.1.7", []), ("0.2.0", ["the client is of release 0.1.0, the server of 0.2.0"])],
)
def test_a_refusal_names_releases_that_differ(server: str, notes: list[str]) -> None:
    told = Answer(200, {}, json.dumps({"name": "forecache", "version": server}).encode())
    error, _ = end_of([problem(400, "bad-input"), told])
    assert getattr(error, "__notes__", []) == notes


def test_what_is_none_is_not_sent() -> None:
    _, steps = end_of([OK], params={"model": None, "limit": 3}, body={"a": 1, "b": None})
    [send] = steps
    assert isinstance(send, Send)
    assert (send.params, send.content) == ({"limit": 3}, b'{"a": 1}')


def test_a_call_carries_the_callers_trace_on() -> None:
    carried = SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with use_span(NonRecordingSpan(carried)):
        _, steps = end_of([OK])
    [send] = steps
    assert isinstance(send, Send)
    assert send.headers["traceparent"] == f"00-{'a':0>32}-{'b':0>16}-01"
    [without] = end_of([OK])[1]
    assert isinstance(without, Send)
    assert "traceparent" not in without.headers
