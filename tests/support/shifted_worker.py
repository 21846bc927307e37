"""A real worker on a host whose clock is `SHIFT_CLOCK_S` seconds off. Run like `python -m workers`.

The shift is made in C, so that everything in the process sees it, Celery included; the steady clock goes on as it is.
"""

from __future__ import annotations

import os
import runpy
import time

import time_machine

if __name__ == "__main__":
    shifted = time.time() + float(os.environ["SHIFT_CLOCK_S"])
    with time_machine.travel(shifted, tick=True):
        runpy.run_module("workers", run_name="__main__", alter_sys=True)
