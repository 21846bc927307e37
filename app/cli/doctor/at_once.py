"""Runs calls side by side and waits for none of them for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def at_once(calls: Mapping[K, Callable[[], T]], within_s: float) -> dict[K, T | Exception]:
    """Return what each call returns or raises, TimeoutError for one that takes too long; its thread is left behind."""
    results: dict[K, T | Exception] = {}

    def run(name: K, call: Callable[[], T]) -> None:
        try:
            results[name] = call()
        except Exception as problem:  # noqa: BLE001 - handed to the caller, who makes a finding of it
            results[name] = problem

    # daemons: a name server that never answers must not keep the command from ending
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in calls.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
    return {name: results.get(name, TimeoutError()) for name in calls}
