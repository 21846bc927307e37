"""When a worker looks for new versions by itself, and when because somebody asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workers.watching import Watch


class Case:
    """A watch over a folder of which a test says whether everything in it has arrived."""

    def __init__(self, poll_every: float | None) -> None:
        self.now, self.asked, self.arrived = 100.0, 0, True
        #: of each look: when, and whether refused versions were tried again
        self.looks: list[tuple[float, bool]] = []
        self.fulfilled: list[tuple[str, str, int]] = []
        own: Any = self
        self.watch = Watch("m", own, own, worker="w", poll_every=poll_every, monotonic=lambda: self.now)

    def look(self, *, again: bool) -> bool:
        self.looks.append((self.now, again))
        return self.arrived

    def reloads(self, model: str) -> Any:
        return SimpleNamespace(requested=self.asked)

    def put_reloaded(self, model: str, worker: str, number: int) -> None:
        self.fulfilled.append((model, worker, number))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.watch.tick()


def test_it_looks_at_once_and_then_every_so_often() -> None:
    case = Case(poll_every=10)
    for _ in range(21):
        case.tick(1)
    assert case.looks == [(101, False), (111, False), (121, False)]
    assert case.fulfilled == []


def test_what_is_still_on_its_way_is_looked_for_at_the_next_tick() -> None:
    case = Case(poll_every=10)
    case.tick()
    case.arrived = False
    case.tick(10)
    case.tick(1)
    case.arrived = True
    case.tick(1)
    case.tick(1)
    assert [at for at, _ in case.looks] == [100, 110, 111, 112]


@pytest.mark.parametrize("poll_every", [10, None])
def test_a_wish_is_looked_after_at_once_and_fulfilled_when_all_has_arrived(poll_every: float | None) -> None:
    case = Case(poll_every)
    case.tick()
    case.asked, case.arrived = 3, False
    case.tick(1)
    assert (case.looks[-1], case.fulfilled) == ((101, True), [])
    case.arrived = True
    case.tick(1)
    assert (case.looks[-1], case.fulfilled) == ((102, True), [("m", "w", 3)])
    case.tick(1)
    assert len(case.looks) == 3


def test_without_polling_it_looks_once() -> None:
    case = Case(poll_every=None)
    case.tick()
    case.tick(1_000_000)
    assert len(case.looks) == 1
