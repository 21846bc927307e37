"""Reads the files that people and programs write to describe something: never more of them than such a file has.

A path may name what never ends (`/dev/zero`), what is far too large, or a pipe that nobody writes to.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

#: far more than a person writes: a list of ten thousand features takes 1 MB
MOST_BYTES = 8 << 20


def open_small(file: Path) -> BufferedReader:
    """Open a file or a pipe to be read by `read_at_most`. A pipe that nobody writes to is empty: it is not waited for.

    Raises:
        OSError: it cannot be read.
    """
    stream = open(file, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    os.set_blocking(stream.fileno(), True)
    return stream


def read_at_most(stream: BufferedReader, most: int = MOST_BYTES) -> bytes:
    """Return the rest of what `open_small` opened.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes.
    """
    data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(f"it is larger than {most >> 20} MiB")
    return data


def read_small(file: Path) -> bytes:
    """Return the bytes of a small file.

    Raises:
        OSError: it cannot be read, or is larger than any such file.
    """
    with open_small(file) as stream:
        return read_at_most(stream)


def read_small_text(file: Path) -> str:
    """Return the text of a small file, without the mark with which some editors begin it.

    Raises:
        OSError: it cannot be read, or is larger than any such file.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_small(file).decode("utf-8-sig")


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)
