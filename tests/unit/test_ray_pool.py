"""How a run's chunks go to Ray's actors, over a Ray that does what a test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from inference.engines import ray_cluster
from inference.engines.ray_cluster import ActorPool
from inference.settings import RaySettings


class ActorDied(Exception):
    """Ray's `RayActorError`."""


class FakeRay:
    """Calls end in their order. `answer(actor, chunk)`: what a call returns, or raises; chunk None: the start."""

    exceptions = SimpleNamespace(RayActorError=ActorDied)

    def __init__(self, cpus: int, answer: Callable[[int, int | None], Any] = lambda actor, chunk: True) -> None:
        self.cpus = cpus
        self.answer = answer
        self.actors = 0
        self.calls: list[tuple[int, int | None]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 64}}]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=self._start)

    def _start(self, config: str | None) -> Any:
        number, self.actors = self.actors, self.actors + 1

        def call(*arguments: Any) -> tuple[int, int, int | None]:
            chunk = arguments[1] if arguments else None
            self.calls.append((number, chunk))
            return len(self.calls), number, chunk

        return SimpleNamespace(open=SimpleNamespace(remote=call), settle=SimpleNamespace(remote=call))

    def wait(self, calls: Sequence[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert calls, "Ray refuses to wait for nothing"
        return [min(calls)], []

    def get(self, call: tuple[int, int, int | None]) -> Any:
        _, actor, chunk = call
        answer = self.answer(actor, chunk)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_LOOK_EVERY_S", 0.0)


def _score(ray: FakeRay, chunks: int) -> list[int]:
    """The chunks that actors got, each as often as it was given out."""
    ActorPool(ray, "m-1", None, RaySettings(), deque(range(chunks))).score()
    return sorted(chunk for _, chunk in ray.calls if chunk is not None)


def test_each_chunk_goes_to_one_actor_and_there_are_no_more_actors_than_processors() -> None:
    ray = FakeRay(cpus=3)
    assert _score(ray, 10) == list(range(10))
    assert ray.actors == 3


def test_there_are_no_more_actors_than_chunks() -> None:
    ray = FakeRay(cpus=8)
    assert _score(ray, 2) == [0, 1]
    assert ray.actors == 2


def test_the_chunk_of_a_dead_actor_goes_to_another_which_takes_its_place() -> None:
    died: list[int] = []

    def answer(actor: int, chunk: int | None) -> Any:
        if chunk == 1 and not died:
            died.append(actor)
            return ActorDied("its node is gone")
        return True

    ray = FakeRay(cpus=2, answer=answer)
    assert _score(ray, 6) == [0, 1, 1, 2, 3, 4, 5]
    assert ray.actors == 3
    assert ray.calls.index((died[0], 1)) == max(at for at, (actor, _) in enumerate(ray.calls) if actor == died[0])


def test_a_chunk_that_another_process_holds_is_asked_for_again() -> None:
    asked: list[int | None] = []

    def answer(actor: int, chunk: int | None) -> bool:
        asked.append(chunk)
        return chunk != 2 or asked.count(2) == 3

    assert _score(FakeRay(cpus=2, answer=answer), 4) == [0, 1, 2, 2, 2, 3]


def test_actors_that_never_start_end_the_run_with_what_ray_says_of_them() -> None:
    ray = FakeRay(cpus=2, answer=lambda actor, chunk: ActorDied("no module named inference"))
    with pytest.raises(ActorDied, match="no module named inference"):
        _score(ray, 4)
    assert ray.actors <= 5


def test_one_bad_start_does_not_end_the_run() -> None:
    ray = FakeRay(cpus=1, answer=lambda actor, chunk: ActorDied("killed") if actor == 0 else True)
    assert _score(ray, 3) == [0, 1, 2]


def test_a_cluster_without_room_gets_one_actor_that_waits_for_a_node() -> None:
    ray = FakeRay(cpus=0)
    assert _score(ray, 3) == [0, 1, 2]
    assert ray.actors == 1


def test_a_node_that_joins_gets_actors() -> None:
    def answer(actor: int, chunk: int | None) -> bool:
        if chunk == 1:
            ray.cpus = 3
        return True

    ray = FakeRay(cpus=1, answer=answer)
    assert _score(ray, 8) == list(range(8))
    assert ray.actors == 3
