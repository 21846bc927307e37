"""The pages' buttons, and their blocking reads, where one of them is slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from app.dashboard import pages
from app.dashboard.pages import Action, SharedReads
from inference.batch import DiffOptions, Trigger
from inference.errors import BadInput, NotFound, StoreUnavailable


class FakeRuns:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given, named))
            return SimpleNamespace(to_json=lambda: {"done": name})

        return call


@pytest.mark.parametrize(
    "body",
    [
        None, [], "start", {}, {"action": "release", "model": "m"}, {"action": ["start"]}, {"action": "start"},
        {"action": "start", "model": 3}, {"action": "cancel", "model": "delay"}, {"action": "resume", "run_id": None},
        {"action": "rollback", "model": "delay"}, {"action": "rollback", "model": "delay", "generation": True},
        {"action": "publish", "model": "delay"}, {"action": "compare"},
        {"action": "compare", "run_id": "r", "options": 3},
        {"action": "compare", "run_id": "r", "options": {"threshold": "high"}},
    ],
)  # fmt: skip
def test_what_is_no_action_of_ours_is_refused(body):
    with pytest.raises(BadInput):
        Action.from_json(body)


@pytest.mark.parametrize(
    ("body", "method", "given"),
    [
        ({"action": "start", "model": "delay"}, "request", ("delay",)),
        ({"action": "cancel", "run_id": "r1"}, "cancel", ("r1",)),
        ({"action": "resume", "run_id": "r1"}, "resume", ("r1",)),
        ({"action": "publish", "run_id": "r1"}, "publish", ("r1",)),
        ({"action": "rollback", "model": "delay", "generation": 7}, "rollback", ("delay",)),
    ],
)
def test_each_button_does_what_it_says(body, method, given):
    runs, hurried = FakeRuns(), list[bool]()
    deployment: Any = SimpleNamespace(runs=runs, broker=SimpleNamespace(hurry=lambda: hurried.append(True)))
    assert Action.from_json(body).do(deployment) == {"done": method}
    assert hurried == [True]
    [(called, positional, named)] = runs.calls
    assert (called, positional) == (method, given)
    assert named.get("generation") == body.get("generation")
    assert named.get("trigger") == (Trigger.API if body["action"] == "start" else None)


def test_a_comparison_is_left_to_the_maintenance_worker_once_it_is_known_to_be_possible():
    runs, sent = FakeRuns(), list[Any]()
    view = SimpleNamespace(run_id="r1", to_json=lambda: {"run_id": "r1"})
    checked: Any = SimpleNamespace(check_diff=lambda *given: runs.calls.append(given) or view)
    broker = SimpleNamespace(compare_run=lambda *given: sent.append(given))
    deployment: Any = SimpleNamespace(runs=checked, broker=broker)
    body = {"action": "compare", "run_id": "r1", "options": {"threshold": 0.5, "segment": "city"}}
    assert Action.from_json(body).do(deployment) == {"run_id": "r1"}
    [(run_id, options)] = sent
    assert (run_id, options["threshold"], options["segment"]) == ("r1", 0.5, "city")
    assert runs.calls == [("r1", DiffOptions(threshold=0.5, segment="city"))]


@pytest.mark.parametrize("generation", [None, "7", 7.0, True, [7]])
def test_a_rollback_names_the_generation_that_the_page_showed(generation):
    with pytest.raises(BadInput, match="the one to roll back from"):
        Action.from_json({"action": "rollback", "model": "delay", "generation": generation})


def test_what_a_button_asked_for_is_done_before_the_maintenance_worker_is_woken():
    runs: Any = FakeRuns()
    broker = SimpleNamespace(hurry=lambda: runs.calls.append("woken"))
    deployment: Any = SimpleNamespace(runs=runs, broker=broker)
    assert Action("cancel", run_id="r1").do(deployment) == {"done": "cancel"}
    assert runs.calls == [("cancel", ("r1",), {}), "woken"]


class Slow:
    """A read that waits until it is let go, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()

    def __call__(self) -> int:
        self.begun += 1
        assert self.go_on.wait(60)
        return self.begun


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedReads]:
    for name in ("READ_TIMEOUT_S", "ACT_TIMEOUT_S"):  # a busy machine is not what is looked at
        monkeypatch.setattr(pages, name, 60)
    with ThreadPoolExecutor(4) as executor:
        yield SharedReads(executor)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()


async def test_pages_that_ask_for_the_same_share_a_read_and_others_do_not_wait_for_it(
    reads: SharedReads, slow: Slow
) -> None:
    asking = [asyncio.create_task(reads.read("runs", slow)) for _ in range(3)]
    assert await reads.read("queues", lambda: "at once") == "at once"
    slow.go_on.set()
    assert await asyncio.gather(*asking) == [1, 1, 1]
    assert await reads.read("runs", slow) == 2, "the next one reads anew"


async def test_a_page_that_is_closed_takes_the_answer_from_nobody(reads: SharedReads, slow: Slow) -> None:
    leaving, staying = (asyncio.create_task(reads.read("runs", slow)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    slow.go_on.set()
    assert await staying == 1


async def test_a_read_that_takes_too_long_is_said_to_and_is_not_begun_again_meanwhile(
    reads: SharedReads, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "READ_TIMEOUT_S", 0.001)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="did not answer within 0 s"):
            await reads.read("runs", slow)
    assert slow.begun == 1
    monkeypatch.setattr(pages, "READ_TIMEOUT_S", 60)
    running = asyncio.create_task(reads.read("runs", slow))
    await asyncio.sleep(0)
    slow.go_on.set()
    assert await running == 1


async def test_a_read_that_fails_fails_all_who_share_it_and_the_next_is_tried(reads: SharedReads, slow: Slow) -> None:
    def fails() -> int:
        slow()
        raise NotFound("no such run")

    asking = [asyncio.create_task(reads.read("runs", fails)) for _ in range(2)]
    await asyncio.sleep(0)
    slow.go_on.set()
    assert [type(one) for one in await asyncio.gather(*asking, return_exceptions=True)] == [NotFound, NotFound]
    assert await reads.read("runs", lambda: 5) == 5


async def test_nobody_shares_an_action(reads: SharedReads, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    slow.go_on.set()
    assert sorted(await asyncio.gather(*(reads.act(slow) for _ in range(2)))) == [1, 2]
    slow.go_on.clear()
    monkeypatch.setattr(pages, "ACT_TIMEOUT_S", 0.001)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await reads.act(slow)
