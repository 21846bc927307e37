"""Waits for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: what a wait is given over what it says: a busy machine is no failure, and what comes in time costs nothing
PATIENCE = 3
#: seconds that nothing takes, however busy the machine, unless it waits for what a test says will not come
LONG_S = 30.0


def wait_for(
    probe: Callable[[], T | None], what: str, timeout_s: float = 60, *, evidence: Callable[[], str] = str
) -> T:
    """Return the probe's first truthy answer; fail the test with `what` when it takes far too long.

    `evidence` is called at a failure only; its text tells what the processes did meanwhile.
    """
    end = time.monotonic() + timeout_s * PATIENCE
    pause_s = 0.05
    while True:
        answer = probe()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {timeout_s * PATIENCE} s in vain for {what}\n{evidence()}"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, 0.2)
