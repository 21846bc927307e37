"""Times the parts of a miss inside the real API and worker processes, for `layers.py`.

Python runs this at the start of every process that has this folder on its path. It wraps the functions of `TIMED` as
their modules are imported, and does nothing unless BENCH_SPANS names a folder. Each process writes a file of spans
there: name, number of the request or of the micro-batch, begin and end (ns of the machine's monotonic clock, which all
its processes share). A span without a number lies within one that has it, in the same process.
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import importlib.util
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FLUSH_EVERY_S = 0.25

_spans: deque[tuple[str, str, int, int]] = deque()
_batch: ContextVar[str] = ContextVar("batch", default="")


def _note(name: str, number: str, began_ns: int) -> None:
    _spans.append((name, number, began_ns, time.monotonic_ns()))


def _plain(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time a function of the worker, which does one thing at a time."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began_ns = time.monotonic_ns()
        try:
            return function(*args, **kwargs)
        finally:
            _note(name, "", began_ns)

    return timed


def _task(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time a task; its numbers are those of its entities."""

    @functools.wraps(function)
    def timed(self: Any, model: Any, entity_ids: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        began_ns = time.monotonic_ns()
        try:
            return function(self, model, entity_ids, *args, **kwargs)
        finally:
            _note(name, _numbers(entity_ids), began_ns)

    return timed


def _lookup(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time the one read that all look-ups of a turn of the event loop share."""

    @functools.wraps(function)
    async def timed(self: Any, ids: Sequence[str]) -> Any:
        began_ns = time.monotonic_ns()
        try:
            return await function(self, ids)
        finally:
            _note(name, _numbers(ids), began_ns)

    return timed


def _dispatch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time a micro-batch's way to a worker and back; what it awaits knows whose it is."""

    @functools.wraps(function)
    async def timed(self: Any, task: str, kwargs: Any, **options: Any) -> Any:
        numbers = _numbers(kwargs.get("entity_ids") or ())
        token = _batch.set(numbers)
        began_ns = time.monotonic_ns()
        try:
            return await function(self, task, kwargs, **options)
        finally:
            _note(name, numbers, began_ns)
            _batch.reset(token)

    return timed


class _TimedLane:
    """The dispatcher's way to the broker, whichever it is; a message is noted under its micro-batch."""

    def __init__(self, lane: Any, name: str) -> None:
        self._lane = lane
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._lane, attribute)

    async def send(self, *args: Any, **kwargs: Any) -> None:
        began_ns = time.monotonic_ns()
        try:
            await self._lane.send(*args, **kwargs)
        finally:
            _note(self._name, _batch.get(), began_ns)


def _send(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time what the dispatcher sends over its first lane, that of requests."""

    @functools.wraps(function)
    def timed(self: Any, urgent: Any, *args: Any, **kwargs: Any) -> None:
        function(self, _TimedLane(urgent, name), *args, **kwargs)

    return timed


def _request(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time an ASGI application from the request to the last byte of its answer."""

    @functools.wraps(function)
    async def timed(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await function(self, scope, receive, send)
            return
        began_ns = time.monotonic_ns()
        number = _numbers([scope["path"]])

        async def noted(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                _note(name, number, began_ns)

        await function(self, scope, receive, noted)

    return timed


def _numbers(ids: Sequence[str]) -> str:
    """Return the rows of ids such as `user_7`, or of paths that end so, joined by spaces."""
    return " ".join(name.rpartition("user_")[2] for name in ids)


#: module → the functions in it → span and how it is taken
TIMED: dict[str, dict[str, tuple[str, Callable[[str, Callable[..., Any]], Callable[..., Any]]]]] = {
    "app.api.application": {"Application.__call__": ("request", _request)},
    "inference.store.reading": {"AsyncTableReader.read": ("lookup", _lookup)},
    "tasks.dispatch.dispatcher": {
        "Dispatcher.__init__": ("send", _send),
        "Dispatcher.__call__": ("dispatch", _dispatch),
    },
    "inference.serving.scorer": {"RealtimeScorer.predict_entities": ("task", _task)},
    "inference.serving.answering": {"score_rows": ("model", _plain)},
    "inference.store.table": {"Table.read_block": ("read", _plain)},
    "inference.store.overlay": {"Overlay.upsert": ("write", _plain)},
}


def wrap(module: Any) -> None:
    """Replace the timed functions of a module.

    Raises:
        AttributeError: one is not there (any more).
    """
    for path, (name, timing) in TIMED[module.__name__].items():
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, module)
        setattr(owner, attribute, timing(name, getattr(owner, attribute)))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of a module as soon as it was executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        del path, target
        if fullname not in TIMED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: Any) -> None:
            execute(module)
            wrap(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def _write_for_good(file: Path) -> None:
    lock = threading.Lock()

    def write() -> None:
        with lock:
            lines = [",".join(map(str, _spans.popleft())) for _ in range(len(_spans))]
            if lines:
                with file.open("a") as out:
                    out.write("\n".join(lines) + "\n")

    def run() -> None:
        while True:
            time.sleep(FLUSH_EVERY_S)
            write()

    def start() -> None:
        threading.Thread(target=run, name="spans", daemon=True).start()

    start()
    os.register_at_fork(after_in_child=start)  # the API's processes are forks
    atexit.register(write)


if os.environ.get("BENCH_SPANS"):
    sys.meta_path.insert(0, _Finder())
    _write_for_good(Path(os.environ["BENCH_SPANS"]) / f"spans-{os.getpid()}.csv")
