"""Keeps what TensorFlow's C++ prints while it starts off the terminal; no log level reaches those lines."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STDERR = 2
#: notes, and the notice that they come before logging is set up
_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")
#: an error only where there is a GPU that should have answered
_NO_GPU = re.compile(rb"^E\d{4} .*(cuInit|cuda)", re.IGNORECASE)


@contextmanager
def without_startup_notes() -> Iterator[None]:
    """Hold back what is written to stderr meanwhile, and write it afterwards without the notes."""
    saved = os.dup(_STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            held.seek(0)
            has_gpu = Path("/dev/nvidiactl").exists()
            for line in held:
                if not is_startup_note(line, has_gpu=has_gpu):
                    os.write(_STDERR, line)


def is_startup_note(line: bytes, *, has_gpu: bool) -> bool:
    """Tell whether a line says nothing that an operator should act on."""
    return bool(_NOTE.match(line)) or (not has_gpu and bool(_NO_GPU.match(line)))
