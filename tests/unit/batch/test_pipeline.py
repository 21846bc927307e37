"""Stages in threads: how far one runs ahead of the other, and what becomes of what waits between them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from inference.batch.scoring import WriteBehind, read_ahead
from tests.support.waiting import LONG_S, wait_for


class Counted:
    """The numbers from 1 on, which tell how many of them were asked for; `fails_at` raises in the place of one."""

    def __init__(self, count: int = 100, *, fails_at: int | None = None) -> None:
        self.asked = 0
        self._count = count
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[int]:
        for number in range(1, self._count + 1):
            self.asked = number
            if number == self._fails_at:
                raise OSError("cannot be read")
            yield number


def test_items_come_in_order_and_so_many_are_made_ahead_and_no_more() -> None:
    made = Counted()
    with closing(read_ahead(made, ahead=2)) as items:
        assert next(items) == 1
        wait_for(lambda: made.asked == 3, "two that wait")
        assert [next(items) for _ in range(99)] == list(range(2, 101))
        assert next(items, None) is None


def test_whoever_leaves_early_gets_nothing_more_of_what_waits() -> None:
    made = Counted()
    with closing(read_ahead(made, ahead=1)) as items:
        assert next(items) == 1
        wait_for(lambda: made.asked == 2, "one that waits")
    assert list(items) == []
    assert made.asked == 2


def test_a_reader_that_fails_is_heard_after_what_it_read_before() -> None:
    with closing(read_ahead(Counted(fails_at=3), ahead=5)) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(OSError, match="cannot be read"):
            next(items)


class Sink:
    """Remembers what it is given; waits for `may_write` before each, and raises for `bad`."""

    def __init__(self, *, bad: int | None = None) -> None:
        self.given: list[int] = []
        self.may_write = threading.Event()
        self._bad = bad

    def write(self, item: int) -> None:
        self.given.append(item)
        assert self.may_write.wait(LONG_S)
        if item == self._bad:
            raise OSError("disk full")


def put_all(writer: WriteBehind[int], sink: Sink, items: Iterable[int]) -> None:
    """Hand items over, let the sink write, and leave the stage."""
    with writer:
        for item in items:
            writer.put(item)
        sink.may_write.set()


def test_everything_is_written_in_order_before_the_stage_is_left() -> None:
    sink = Sink()
    with WriteBehind(sink.write, behind=2) as writer:
        assert writer.is_idle
        for item in range(3):
            writer.put(item)
        assert not writer.is_idle
        sink.may_write.set()
        wait_for(lambda: writer.is_idle, "the writer")
        writer.put(3)
    assert sink.given == [0, 1, 2, 3]


def test_after_an_error_nothing_more_is_written_and_it_is_raised_once_the_stage_is_left() -> None:
    sink = Sink(bad=1)
    with pytest.raises(OSError, match="disk full"):
        put_all(WriteBehind(sink.write, behind=5), sink, range(4))
    assert sink.given == [0, 1]


def test_after_an_error_nothing_more_is_taken() -> None:
    sink = Sink(bad=0)
    sink.may_write.set()
    taken: list[int] = []
    endless = (taken.append(item) or item for item in range(1_000_000))
    with pytest.raises(OSError, match="disk full"):
        put_all(WriteBehind(sink.write, behind=1), sink, endless)
    assert sink.given == [0]
    assert len(taken) < 1_000_000
