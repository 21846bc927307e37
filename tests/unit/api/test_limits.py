"""The memory that all requests of a process share, and the places for connections."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest

from app import http
from app.api.limits import BodyLimit, ConnectionLimit, HeldBytes, RequestMemory
from inference.errors import Overloaded


class Sender:
    """A request that holds bytes, and may be waiting for its client."""

    def __init__(self, memory: RequestMemory, *, waits: bool = True) -> None:
        self.waits = waits
        self.was_asked = 0
        self.held = HeldBytes(memory, self._give_up)

    def _give_up(self) -> bool:
        self.was_asked += 1
        return self.waits


def test_the_oldest_of_those_that_wait_for_their_clients_makes_room() -> None:
    memory = RequestMemory(100)
    complete, oldest, newer, newest = Sender(memory, waits=False), Sender(memory), Sender(memory), Sender(memory)
    for sender in (complete, oldest, newer):
        sender.held.set(30)
    newest.held.set(30)
    assert (complete.held.size, oldest.held.size, newer.held.size, newest.held.size) == (30, 0, 30, 30)
    assert memory.held == 90
    with pytest.raises(Overloaded, match="send this one again"):
        oldest.held.set(31)


def test_whoever_finds_no_room_is_refused_and_holds_nothing() -> None:
    memory = RequestMemory(100)
    complete = [Sender(memory, waits=False) for _ in range(3)]
    for sender in complete:
        sender.held.set(30)
    newest = Sender(memory)
    newest.held.set(10)
    with pytest.raises(Overloaded) as refused:
        newest.held.set(11)
    assert refused.value.retry_after_s
    assert (newest.held.size, memory.held) == (0, 90)
    complete[0].held.set(0)
    Sender(memory).held.set(40)


def test_a_full_room_is_not_searched_from_end_to_end_for_each_newcomer() -> None:
    memory = RequestMemory(1000)
    complete = [Sender(memory, waits=False) for _ in range(1000)]
    for sender in complete:
        sender.held.set(1)
    for _ in range(30):
        with pytest.raises(Overloaded):
            Sender(memory).held.set(1)
    asked = [sender.was_asked for sender in complete]
    assert sum(asked) < 64 * 31
    assert max(asked) - min(asked) <= 1  # and each time others are asked


def test_a_body_holds_its_bytes_until_the_request_is_answered() -> None:
    memory = RequestMemory(100)
    held: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            held.append(memory.held)
        held.append(memory.held)

    pieces = iter([40, 20, 0])

    async def receive() -> dict[str, Any]:
        size = next(pieces)
        return {"type": "http.request", "body": b"x" * size, "more_body": size > 0}

    asyncio.run(BodyLimit(app, memory)({"type": "http"}, receive, None))  # type: ignore[arg-type]
    assert held == [40, 60, 60]
    assert memory.held == 0


def test_a_body_that_is_waited_for_ends_when_its_room_is_needed() -> None:
    memory = RequestMemory(100)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def stalls(has_stalled: asyncio.Event) -> None:
        pieces = iter([60])

        async def receive() -> dict[str, Any]:
            for size in pieces:
                return {"type": "http.request", "body": b"x" * size, "more_body": True}
            has_stalled.set()
            return await asyncio.Future()

        with pytest.raises(Overloaded):
            await BodyLimit(app, memory)({"type": "http"}, receive, None)  # type: ignore[arg-type]

    async def both() -> None:
        has_stalled = asyncio.Event()
        stalled = asyncio.create_task(stalls(has_stalled))
        await has_stalled.wait()
        Sender(memory).held.set(60)
        await stalled

    asyncio.run(both())
    assert memory.held == 60


class Client:
    """One of several connections."""

    def __init__(self, loop: Any, since: tuple[bool, float] | None) -> None:
        self.loop, self.since, self.has_left = loop, since, False

    def silent_since(self) -> tuple[bool, float] | None:
        return None if self.has_left else self.since

    def make_way(self) -> None:
        self.has_left = True


class Clock:
    now = 0.0

    def time(self) -> float:
        return self.now


def test_silent_connections_go_first_and_of_them_those_that_never_asked() -> None:
    loop, limit = Clock(), ConnectionLimit(4, 10)
    asked, waits = Client(loop, (True, 1.0)), Client(loop, None)
    young, old = Client(loop, (False, 3.0)), Client(loop, (False, 2.0))
    everybody, newcomer = [asked, waits, young, old], Client(loop, (False, 9.0))
    gone = []
    for _ in range(3):
        assert limit.make_place([*everybody, newcomer], newcomer)
        gone += [one for one in everybody if one.has_left and one not in gone]
    assert gone == [old, young, asked]
    assert not limit.make_place([*everybody, newcomer], newcomer)
    # while all wait for an answer, nobody is looked for each time
    waits.since = (True, 5.0)
    assert not limit.make_place([*everybody, newcomer], newcomer)
    loop.now += 1
    assert limit.make_place([*everybody, newcomer], newcomer)


@pytest.mark.parametrize("descriptors", [200, 256, 1024, 4096, 20_000, 1_048_576])
@pytest.mark.parametrize("most", [None, 50])
def test_connections_and_those_that_wait_to_be_accepted_leave_descriptors_for_redis(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    count, spare = http.places(most)
    assert 0 < count <= (most or http.MOST_CONNECTIONS)
    assert count + spare + http.KEPT <= max(descriptors, http.KEPT + 33)
    assert 0 < http.backlog() <= spare


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for limits in ((1024, 4096), (1024, 524_288), (1024, resource.RLIM_INFINITY), (20_000, 20_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        http.raise_descriptors()
    assert set_to == [(4096, 4096), (15_000, 524_288), (15_000, resource.RLIM_INFINITY)]
