"""New files, all of them or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.errors import BadInput


@dataclass(frozen=True)
class StagedFiles:
    """Files that lie complete beside the places they are meant for: place → file."""

    files: Mapping[Path, Path]

    def commit(self) -> None:
        """Put every file in its place. When one cannot be, those before it get back what they held.

        Raises:
            BadInput: a place cannot be written; nothing has changed.
        """
        before: dict[Path, bytes | None] = {}
        try:
            for place, fresh in self.files.items():
                held = place.read_bytes() if place.exists() else None
                fresh.replace(place)
                before[place] = held
        except OSError as error:
            for written, content in before.items():
                if content is None:
                    written.unlink()
                else:
                    written.write_bytes(content)
            raise _cannot_write(place, error) from error


@contextmanager
def staged(texts: Mapping[Path, str]) -> Iterator[StagedFiles]:
    """Write each text beside its place, without touching what is there; removed at the end unless committed.

    Raises:
        BadInput: a folder cannot be written, or a text is not valid Unicode; nothing is left behind.
    """
    files = {place: place.with_name(f".{place.name}.{os.getpid()}.new") for place in texts}
    try:
        for place, fresh in files.items():
            try:
                if place.exists():  # what nobody else may read, such as passwords, stays so
                    fresh.touch(mode=stat.S_IMODE(place.stat().st_mode))
                fresh.write_text(texts[place], encoding="utf-8")
            except OSError as error:
                raise _cannot_write(place, error) from error
            except UnicodeEncodeError as error:
                raise BadInput(
                    f"{place.name} cannot hold a name that is not UTF-8: rename the file or column"
                ) from error
        yield StagedFiles(files)
    finally:
        for fresh in files.values():
            # a folder that refused the file refuses this too, and says so in its own way
            if fresh.exists():
                fresh.unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before anything that takes long.

    Raises:
        BadInput: it is not there, or read-only.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"folder {folder} cannot be written: run this where you may write, nothing was changed")


def _cannot_write(place: Path, error: OSError) -> BadInput:
    return BadInput(f"{place} cannot be written ({error.strerror}): nothing was changed")
