"""Loaded by each Python process under libfaketime, which mistakes the steady clock of `time.sleep` for its own."""

from __future__ import annotations

import select
import time


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        select.select([], [], [], left_s)


time.sleep = _sleep
