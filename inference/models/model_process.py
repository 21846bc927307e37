"""Runs one of our modules that load a model in a process of its own, within the limits of loading."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO

from inference.errors import ModelError
from inference.models.limits import LoadLimits, limit_process, resident_bytes, with_fix

#: a process fills about 2 GB a second with zeros, so it exceeds its limit by a tenth of that
_LOOK_EVERY_S = 0.05
#: the record of a model with ten thousand inputs takes 1 MB
_MOST_ANSWER_BYTES = 32 << 20
_LAST_BYTES = 64 << 10
_LONGEST_LINE = 2_000


def run_model_process(
    module: str,
    *arguments: str,
    what: str,
    limits: LoadLimits,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return what one of our modules that loads a model prints, run in a process of its own without a GPU.

    `environment`: what is added to this process's own.

    Raises:
        ModelError: it ended with an error, whose last line is the message, or exceeded a limit, which is named.
    """
    # -P: a user's own workers.py in the working directory must not be taken for ours
    command = [sys.executable, "-P", "-m", module, *arguments]
    variables = {**os.environ, **(environment or {}), "CUDA_VISIBLE_DEVICES": "-1"}
    with (
        # libraries unpack archives there, and leave them when they are killed
        tempfile.TemporaryDirectory(prefix="forecache-") as scratch,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as complaint,
    ):
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(  # noqa: S603 - our own module; the arguments are the operator's
            command, stdin=given, stdout=answer, stderr=complaint, env={**variables, "TMPDIR": scratch}
        )
        try:
            limit_process(process.pid, limits)
            _wait(process, limits, what)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise ModelError(_why_it_ended(process.returncode, complaint, what, limits), field="path")
        answer.seek(0)
        told = answer.read(_MOST_ANSWER_BYTES + 1)
    if len(told) > _MOST_ANSWER_BYTES:
        raise ModelError(f"{what} has more inputs and outputs than can be told in {_MOST_ANSWER_BYTES >> 20} MiB")
    return told.decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], limits: LoadLimits, what: str) -> None:
    """Return when a process has ended by itself.

    Raises:
        ModelError: it exceeds its limit of memory or time.
    """
    until = time.monotonic() + limits.timeout_s
    while True:
        try:
            process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if resident_bytes(process.pid) > limits.memory_bytes:
                raise ModelError(limits.too_much_memory(f"loading {what}"), field="path") from None
            if time.monotonic() > until:
                raise ModelError(limits.too_long(what), field="path") from None
        else:
            return


def _why_it_ended(status: int, complaint: IO[bytes], what: str, limits: LoadLimits) -> str:
    complaint.seek(max(0, complaint.seek(0, os.SEEK_END) - _LAST_BYTES))
    said = complaint.read().decode(errors="replace").strip()
    if status < 0:
        # C++ ends its process when it gets no memory, and says so at most
        return with_fix(f"loading {what} ended its process by {signal.Signals(-status).name}", said, limits)
    return said.splitlines()[-1][:_LONGEST_LINE] if said else f"loading {what} ended with {status}"
