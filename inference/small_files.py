"""Reads small files that describe something, such as settings, up to a maximum size.

A path may name an endless device (`/dev/zero`), a far too large file, or a pipe that nobody writes to.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

#: far more than a person writes: a list of ten thousand features takes 1 MB
MOST_BYTES = 8 << 20


def open_small(file: Path) -> BufferedReader:
    """Open a file or a pipe for `read_at_most`. Does not wait for a writer: a pipe without one is empty.

    Raises:
        OSError: it cannot be read.
    """
    stream = open(file, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    os.set_blocking(stream.fileno(), True)
    return stream


def read_at_most(stream: BufferedReader, most: int = MOST_BYTES) -> bytes:
    """Return the rest of a file that `open_small` opened.

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
        OSError: it cannot be read, or is larger than MOST_BYTES.
    """
    with open_small(file) as stream:
        return read_at_most(stream)


def read_small_text(file: Path) -> str:
    """Return the text of a small file, without a byte order mark.

    Raises:
        OSError: it cannot be read, or is larger than MOST_BYTES.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_small(file).decode("utf-8-sig")


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)
