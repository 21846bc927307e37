"""Stages in threads of their own, with few items between them: one reads ahead, one writes behind.

The stage in the middle runs in the caller's thread. Whatever a thread raises is raised in the caller, and leaving
either stage ends its thread, so that nothing goes on after an error.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from inference.logs import in_this_context

T = TypeVar("T")


class _Closed(Exception):
    """Raised in a thread when nobody wants its items any more."""


class _Channel(Generic[T]):
    """A queue between two threads that either side can end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Wait for room and add an item; raises what the other side failed with, or _Closed when it is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) < self._most)
            if self._ended:
                raise self._error or _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for an item and remove it; raises _Closed, or what the other side failed with, after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._items)
            if not self._items:
                raise self._error or _Closed
            self._changed.notify_all()
            return self._items.popleft()

    def end(self, error: BaseException | None = None, *, drop: bool = False) -> None:
        """Say that no more comes or is wanted; `drop` also throws away what waits."""
        with self._changed:
            self._ended = True
            self._error = self._error or error
            if drop:
                self._items.clear()
            self._changed.notify_all()


class ReadAhead(Generic[T]):
    """An iterator whose items are made in a thread, `ahead` of them before they are asked for."""

    def __init__(self, items: Iterable[T], *, ahead: int, name: str = "read ahead") -> None:
        self._items = items
        self._channel: _Channel[T] = _Channel(ahead)
        self._thread = threading.Thread(target=in_this_context(self._run), name=name, daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._drain()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.end(drop=True)
        self._thread.join()

    def _drain(self) -> Iterator[T]:
        while True:
            try:
                item = self._channel.get()
            except _Closed:
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._items:
                self._channel.put(item)
        except _Closed:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._channel.end(error)
        else:
            self._channel.end()


class WriteBehind(Generic[T]):
    """Calls `write` for each item in a thread, in order; at most `behind` items wait.

    After an error no further item is written; it is raised by the next `put`, or when the stage is left. Left with
    an error of the caller's, the stage drops what waits.
    """

    def __init__(self, write: Callable[[T], None], *, behind: int, name: str = "write behind") -> None:
        self._write = write
        self._channel: _Channel[T] = _Channel(behind)
        self._thread = threading.Thread(target=in_this_context(self._run), name=name, daemon=True)
        self._error: BaseException | None = None
        self._taken, self._written = 0, 0

    @property
    def is_idle(self) -> bool:
        """Whether everything that was handed over is written."""
        return self._taken == self._written

    def put(self, item: T) -> None:
        """Hand an item over; waits while too many do."""
        self._taken += 1
        self._channel.put(item)

    def __enter__(self) -> WriteBehind[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.end(drop=error is not None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                self._write(self._channel.get())
                self._written += 1
        except _Closed:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = error
            self._channel.end(error, drop=True)
