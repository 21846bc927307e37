"""Follows the generation that a prediction table serves, and keeps it in a file of this host."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

from inference import host_locks
from inference.errors import Unavailable, UnknownFormat, Unreadable
from inference.failures import Failures
from inference.local_reader.packed import PackedGeneration, PackedWriter
from inference.outcomes import Outcome
from inference.redis.bulk import Pace
from inference.redis.clock import MEASURE_EVERY_S, RedisClock
from inference.store import Manifest, Pointer, Table

#: seconds between two looks at the pointer: a flip is seen well within a second
LOOK_EVERY_S = 0.25
#: seconds before a file that could not be written is tried again
RETRY_AFTER_S = 10.0
#: seconds that a process waits for another one to load; then it loads by itself
LONGEST_LOAD_S = 600.0
_FILES = ".rows"
_PARTS = ".part"


class _Interrupted(Exception):
    """Raised when a load makes no sense any more: another generation serves, or the reader ends."""


@dataclass(frozen=True)
class ServedFile:
    """The file that answers now. `outcome`: HIT_BATCH, or PREVIOUS if another generation serves."""

    packed: PackedGeneration
    outcome: Outcome


class GenerationFollower:
    """Keeps `serving` up to date, in a thread that calls `run`.

    `serving` is None while no file may answer. `keep_previous`: an older generation answers while a newer one loads;
    it does so in any case if the newer one cannot be written. `error`: a sentence about the failure of the last look,
    or None. `heard_at`: when Redis last answered, in epoch seconds.
    """

    def __init__(self, table: Table, folder: Path, pace: Pace, clock: RedisClock, *, keep_previous: bool) -> None:
        self._table = table
        self._folder = folder
        self._pace = pace
        self._clock = clock
        self._keep_previous = keep_previous
        self._stopped = Event()
        self._loaded: PackedGeneration | None = None
        self._incarnation = ""
        #: how often an entity was put on the list of forgotten ones: as Redis last said, and when the file was written
        self._additions = self._loaded_additions = 0
        self._not_written: Manifest | None = None
        self._failures = Failures(__name__, "local_reader")
        self._next_load_at = self._refused_since = self._looked_at = self._worked_since = 0.0
        self._measured_at = float("-inf")
        self.serving: ServedFile | None = None
        self.error: str | None = None
        self.heard_at: float | None = None

    def run(self) -> None:
        """Look until `stop`."""
        self.look()
        while not self._stopped.wait(LOOK_EVERY_S):
            self.look()

    def stop(self) -> None:
        """Have `run` end soon, also while it loads."""
        self._stopped.set()

    def look(self) -> None:
        """Look once which generation serves; load it if it is not loaded yet. Logs a failure, once if it repeats.

        If Redis does not answer, the same file goes on answering.
        """
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - a boundary: the next look may succeed
            self.error = self._failures.tell(error)
            if isinstance(error, UnknownFormat) or not isinstance(error, Unavailable):
                self.serving = None
        else:
            self.error = None
            self._failures.over()

    def _look(self) -> None:
        pointer, manifest = self._ask()
        is_loaded = manifest is None or self._has(manifest, pointer)
        if is_loaded:
            self._not_written = None
        self.serving = self._choose(pointer, manifest)
        if manifest is None or is_loaded:
            return
        if manifest == self._not_written and time.monotonic() < self._next_load_at:
            raise Unavailable(self.error or "")
        try:
            self._load(pointer, manifest)
        except _Interrupted:
            return
        except OSError as error:
            self._not_written, self._next_load_at = manifest, time.monotonic() + RETRY_AFTER_S
            self.serving = self._choose(pointer, manifest)
            problem = f"generation {manifest.number} cannot be kept in {self._folder.parent}: {error.strerror or error}"
            raise Unavailable(f"{problem}; make room, or choose another folder") from error
        self._not_written = None
        self.serving = self._choose(pointer, manifest)

    def _ask(self) -> tuple[Pointer, Manifest | None]:
        """Return the pointer, and the manifest of its generation; None if there is none, or its rows are gone."""
        pointer = self._table.pointer()
        self._additions = self._table.forgotten.additions()
        manifest = None if pointer.current is None else self._table.generations.manifest(pointer.current)
        if time.monotonic() >= self._measured_at + MEASURE_EVERY_S:
            sent_at = time.time()
            self._clock.learn(self._table.now(), sent_at=sent_at, received_at=time.time())
            self._measured_at = time.monotonic()
        self.heard_at = self._clock.now()
        return pointer, None if manifest is None or self.heard_at >= manifest.deadline else manifest

    def _has(self, manifest: Manifest, pointer: Pointer) -> bool:
        loaded = self._loaded
        return loaded is not None and loaded.manifest == manifest and self._may_serve(pointer)

    def _may_serve(self, pointer: Pointer) -> bool:
        """Tell whether the loaded file is of this Redis, and has no rows of entities that were forgotten since."""
        return (self._incarnation, self._loaded_additions) == (pointer.incarnation, self._additions)

    def _choose(self, pointer: Pointer, manifest: Manifest | None) -> ServedFile | None:
        """Return the file that may answer for the pointer."""
        loaded = self._loaded
        if loaded is None or manifest is None or not self._may_serve(pointer):
            return None
        if loaded.manifest == manifest:
            return ServedFile(loaded, Outcome.HIT_BATCH)
        if loaded.manifest.number > manifest.number:
            self._loaded = None  # it was rolled back, and must not stand in for a later one
            return None
        may_answer = loaded.manifest.model_version not in pointer.held_versions
        if may_answer and (self._keep_previous or self._not_written is not None) and self._lives(loaded):
            return ServedFile(loaded, Outcome.PREVIOUS)
        return None

    def _lives(self, loaded: PackedGeneration) -> bool:
        return self._clock.now() < loaded.manifest.deadline

    def _load(self, pointer: Pointer, manifest: Manifest) -> None:
        """Map the generation's file; write it before if no process of this host has.

        Raises:
            _Interrupted: another generation serves, or another process writes.
            OSError: the file cannot be written or read.
        """
        additions = self._additions
        path = self._path(pointer, manifest)
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with host_locks.holding(path.parent) as is_mine:
                if not is_mine and not self._waited():
                    raise _Interrupted
                self._refused_since = 0.0
                self._remove_others(pointer, path)
                if not path.exists():
                    self._write(path, pointer, manifest)
        try:
            self._loaded, self._incarnation = PackedGeneration(path), pointer.incarnation
            self._loaded_additions = additions
        except Unreadable:
            path.unlink(missing_ok=True)  # the next look writes it anew
            raise

    def _waited(self) -> bool:
        """Tell whether another process has held the lock for too long."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return now > self._refused_since + LONGEST_LOAD_S

    def _path(self, pointer: Pointer, manifest: Manifest) -> Path:
        # deployments may share all names but the incarnation; a Redis that was restored gives numbers out again
        folder = self._folder.with_name(f"{self._folder.name}-{pointer.incarnation}")
        return folder / f"{manifest.number}-{int(manifest.created_at * 1e6)}-{self._additions}{_FILES}"

    def _write(self, path: Path, pointer: Pointer, manifest: Manifest) -> None:
        """Write the generation's file. It gets its name when it is whole and still serves."""
        additions, forgotten = self._additions, self._table.forgotten.all()
        with _new_file(path) as file:
            writer = PackedWriter(file, manifest)
            self._looked_at = self._worked_since = time.monotonic()
            for batch in self._table.generations.scan(manifest, give_way=lambda: self._give_way(pointer)):
                writer.add(batch.without(forgotten))
            writer.finish()
            self._check(pointer)
            if self._additions != additions:
                raise _Interrupted

    def _give_way(self, pointer: Pointer) -> None:
        """Rest between two pieces, and look at the pointer in time."""
        now = time.monotonic()
        if self._pace.rests:
            self._pace.rest(now - self._worked_since)
        if now >= self._looked_at + LOOK_EVERY_S:
            self._check(pointer)
        self._worked_since = time.monotonic()

    def _check(self, pointer: Pointer) -> None:
        if self._stopped.is_set():
            raise _Interrupted
        now, manifest = self._ask()
        if (now.current, now.incarnation) != (pointer.current, pointer.incarnation) or manifest is None:
            self.serving = self._choose(now, manifest)
            raise _Interrupted
        self._looked_at = time.monotonic()

    def _remove_others(self, pointer: Pointer, path: Path) -> None:
        """Remove files of generations that neither serve nor would after a rollback. What is mapped stays readable.

        Only the process that holds the lock does so: another one may still believe in an older pointer.
        """
        kept = {path} | ({self._loaded.path} if self._loaded and self._may_serve(pointer) else set())
        if self._loaded is not None and self._incarnation != pointer.incarnation:
            shutil.rmtree(self._loaded.path.parent, ignore_errors=True)
        for other in path.parent.iterdir():
            is_previous = other.stem.split("-")[::2] == [str(pointer.previous), str(self._additions)]
            if other.suffix in (_FILES, _PARTS) and other not in kept and not is_previous:
                other.unlink(missing_ok=True)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` after the block, and is removed if the block fails."""
    part = path.with_suffix(f".{os.getpid()}{_PARTS}")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            yield file
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
