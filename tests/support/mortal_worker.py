"""A real worker that one input kills, as a crash in native code would: no handler runs, no message is acknowledged.

Run like `python -m workers`, with the same arguments.
"""

from __future__ import annotations

import os
import runpy
import signal
from typing import Any

from inference.models import LoadedModel
from inference.schema import Block
from inference.serving import answering

#: a row whose feature `a` has this value ends the process
DEADLY = 13.0

_score_rows = answering.score_rows


def _score_or_die(loaded: LoadedModel, block: Block) -> Any:
    if (block["a"] == DEADLY).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return _score_rows(loaded, block)


if __name__ == "__main__":
    answering.score_rows = _score_or_die
    runpy.run_module("workers", run_name="__main__", alter_sys=True)
