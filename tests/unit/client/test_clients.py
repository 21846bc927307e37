"""Both clients: the same calls, with the same results, over a transport that answers as the API does."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest

from forecache import (
    AsyncClient,
    AsyncJob,
    Client,
    Conflict,
    DeadlineExceeded,
    Failed,
    ForecacheError,
    Job,
    NoConnection,
)
from forecache.celery import connect

ITEM = {
    "entity_id": "F1", "model": "delay", "model_version": 3, "prediction": 13.5, "source": "batch",
    "outcome": "hit_batch", "cache_hit": True, "stale": False, "degraded": False, "as_of": "2026-11-23T22:03:15.000Z",
    "computed_at": "2026-11-23T22:03:15.015Z", "timestamp": 1795471395.015,
}  # fmt: skip


class FakeApi:
    """Answers as the API does; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.job_states = ["running", "done"]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path, body = request.url.raw_path.decode(), json.loads(request.content or b"{}")
        if path.startswith("/predict/"):
            return httpx.Response(200, json={**ITEM, "entity_id": request.url.path.removeprefix("/predict/")})
        if path == "/predict":
            ids = body.get("entity_ids") or [None] * len(body["instances"])
            return httpx.Response(200, json={"predictions": [self._item(one) for one in ids]})
        if path == "/predictions":
            return httpx.Response(202, json={"task_id": "j-1", "status_url": "/predictions/j-1"})
        if path.startswith("/predictions/"):
            return self._job(request)
        if path.startswith("/hit-rate"):
            return httpx.Response(
                200, json={"model": "delay", "window_s": 300, "total": 0, "hit_rate": None, "outcomes": {}}
            )
        raise AssertionError(path)

    def _item(self, entity_id: str | None) -> dict[str, Any]:
        if entity_id == "nobody":
            problem = {"code": "unknown-entity", "detail": "unknown", "status": 404}
            return {"entity_id": "nobody", "error": problem}
        return {**ITEM, "entity_id": entity_id}

    def _job(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            self.job_states = ["cancelled"]
            return httpx.Response(202, json={"task_id": "j-1", "state": "cancelled"})
        state = self.job_states.pop(0)
        result = {"result": {"predictions": [ITEM]}} if state == "done" else {}
        return httpx.Response(200, json={"task_id": "j-1", "state": state, **result})


class Asked:
    """Calls one of the two clients the same way."""

    def __init__(self, api: Any, *, is_async: bool, **options: Any) -> None:
        self._transport = httpx.MockTransport(api)
        self._is_async = is_async
        self._options = options

    def __call__(self, name: str, *arguments: Any, **named: Any) -> Any:
        if not self._is_async:
            with Client(transport=self._transport, **self._options) as client:
                return getattr(client, name)(*arguments, **named)

        async def ask() -> Any:
            async with AsyncClient(transport=self._transport, **self._options) as client:
                return await getattr(client, name)(*arguments, **named)

        return asyncio.run(ask())

    def job(self, name: str, *arguments: Any) -> Any:
        if not self._is_async:
            with Client(transport=self._transport, **self._options) as client:
                return getattr(client.enqueue(["F1"]), name)(*arguments)

        async def ask() -> Any:
            async with AsyncClient(transport=self._transport, **self._options) as client:
                found: Awaitable[Any] = getattr(await client.enqueue(["F1"]), name)(*arguments)
                return await found

        return asyncio.run(ask())


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture(params=[False, True], ids=["Client", "AsyncClient"])
def asked(request: pytest.FixtureRequest, api: FakeApi) -> Asked:
    return Asked(api, is_async=request.param, retries=0)


def test_one_prediction(asked: Asked, api: FakeApi) -> None:
    answer = asked("predict", "a/b %", model="delay", timeout_ms=50)
    assert (answer.value, answer.outcome, answer.entity_id) == (13.5, "hit_batch", "a/b %")
    assert answer.as_of.isoformat() == "2026-11-23T22:03:15+00:00"
    assert api.requests[0].url.raw_path == b"/predict/a%2Fb%20%25?model=delay&timeout_ms=50"


@pytest.mark.parametrize("entity_id", [".", ".."])
def test_ids_that_a_path_cannot_hold_go_in_a_body(asked: Asked, api: FakeApi, entity_id: str) -> None:
    assert asked("predict", entity_id).entity_id == entity_id
    assert api.requests[0].url.path == "/predict"


def test_overrides_go_in_a_body(asked: Asked, api: FakeApi) -> None:
    asked("predict", 7, overrides={"age": 3})
    assert json.loads(api.requests[0].content) == {"entity_ids": ["7"], "overrides": {"age": 3}}


def test_any_number_comes_back_in_order(asked: Asked, api: FakeApi) -> None:
    ids = [f"F{n}" for n in range(2_300)]
    assert [one.entity_id for one in asked("predict_many", ids)] == ids
    assert sorted(len(json.loads(each.content)["entity_ids"]) for each in api.requests) == [300, 1_000, 1_000]


def test_one_that_fails_does_not_fail_the_others(asked: Asked) -> None:
    answers = asked("predict_many", ["F1", "nobody", "F2"])
    assert answers.values == [13.5, None, 13.5]
    [failed] = answers.failed
    assert isinstance(failed, Failed)
    assert failed.error.code == "unknown-entity"


def test_an_error_of_one_part_is_raised_as_it_is(asked: Asked) -> None:
    with pytest.raises(ForecacheError, match="not text or an integer"):
        asked("predict_many", [*range(2_000), 1.5])


def test_a_job_is_waited_for(asked: Asked, api: FakeApi) -> None:
    assert asked.job("result").values == [13.5]
    keys = [each.headers["idempotency-key"] for each in api.requests if each.method == "POST"]
    assert len(keys[0]) == 32


def test_a_job_that_was_cancelled_has_no_result(asked: Asked, api: FakeApi) -> None:
    assert asked.job("cancel") == "cancelled"
    with pytest.raises(Conflict, match="j-1 was cancelled"):
        asked.job("result")


def test_a_job_is_not_waited_for_longer_than_asked(asked: Asked, api: FakeApi) -> None:
    api.job_states = ["running"] * 3
    with pytest.raises(DeadlineExceeded, match="j-1 is not over within 0 s"):
        asked.job("result", 0.0)


async def test_a_job_is_awaited_and_iterated(api: FakeApi) -> None:
    api.job_states = ["done", "done"]
    async with AsyncClient(transport=httpx.MockTransport(api)) as client:
        job = await client.enqueue(["F1"])
        assert (await job).values == [13.5]
        assert [one.entity_id async for one in job] == ["F1"]


def test_a_hit_rate_of_no_requests_is_none(asked: Asked) -> None:
    assert asked("hit_rate").rate is None


def test_nothing_at_the_address_is_named(asked: Asked) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with pytest.raises(NoConnection, match=r"http://127.0.0.1:8000 is not reached: Connection refused"):
        Asked(refuse, is_async=asked._is_async, retries=0)("predict", "F1")


def test_the_key_is_sent_and_never_shown(api: FakeApi) -> None:
    with Client("http://here:1", api_key="sesame", transport=httpx.MockTransport(api)) as client:
        client.predict("F1")
        assert api.requests[0].headers["authorization"] == "Bearer sesame"
        assert "sesame" not in repr(client)


def test_a_password_in_the_address_is_never_shown() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with Client("http://me:secret@here:1", retries=0, transport=httpx.MockTransport(refuse)) as client:
        assert repr(client) == "<Client of http://here:1>"
        with pytest.raises(NoConnection, match=r"^http://here:1 is not reached"):
            client.predict("F1")


def test_a_forked_process_opens_connections_of_its_own(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(transport=httpx.MockTransport(api)) as client:
        before = client._http
        monkeypatch.setattr(os, "getpid", lambda: -1)
        client.predict("F1")
        assert client._http is not before
        before.close()


#: a parent whose threads rest, and a child that needs them
FORK = """
import json, os, signal, threading
import httpx
from forecache import Client

ITEM = json.loads('''%s''')
both = threading.Barrier(2)

def answer(request):
    both.wait()  # each part has a thread of its own
    ids = json.loads(request.content)["entity_ids"]
    return httpx.Response(200, json={"predictions": [{**ITEM, "entity_id": one} for one in ids]})

with Client(transport=httpx.MockTransport(answer)) as client:
    assert len(client.predict_many(range(2000))) == 2000
    child = os.fork()
    if not child:
        signal.alarm(30)
        both = threading.Barrier(2)
        os._exit(len(client.predict_many(range(2000))) != 2000)
    raise SystemExit(os.waitpid(child, 0)[1])
"""


def test_a_forked_process_sends_the_parts_of_a_call_by_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FORK % json.dumps(ITEM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _calls(kind: type) -> dict[str, Any]:
    """The parameters of each public call, and of making the client; their transports differ in type."""
    names = {name for name in vars(kind) if not name.startswith("_")} - {"close", "aclose"}
    return {
        name: [
            (one.name, one.kind, one.default, None if one.name == "transport" else one.annotation)
            for one in inspect.signature(getattr(kind, name)).parameters.values()
        ]
        for name in [*names, "__init__"]
    }


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_both_clients_have_the_same_calls_with_the_same_parameters(one: type, other: type) -> None:
    assert _calls(one) == {**_calls(other), "__init__": _calls(one)["__init__"]}
    assert [name for name, *_ in _calls(one)["__init__"]] == [name for name, *_ in _calls(other)["__init__"]]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda client: client.predict("F1", max_stalenes_hours=1), "did you mean 'max_staleness_hours'?"),
        (lambda client: client.hit_rate(window=300), "did you mean 'window_s'?"),
        (lambda client: client.job("j-1", zzz=1), "no argument 'zzz': it takes job_id"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_one(call: Any, told: str) -> None:
    with Client() as client, pytest.raises(TypeError, match=re.escape(told)):
        call(client)

    async def refused() -> None:
        async with AsyncClient() as client:
            answer = call(client)
            if not isinstance(answer, AsyncJob):
                await answer

    with pytest.raises(TypeError, match=re.escape(told)):
        asyncio.run(refused())


def test_unknown_arguments_of_the_constructor_and_of_functions_are_refused_too() -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(TypeError, match="did you mean 'timeout_s'"):
            client(timeout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'prefix'"):
        connect("redis://x", "redis://x", prefx="a")  # type: ignore[call-arg]
