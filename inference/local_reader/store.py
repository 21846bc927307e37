"""Holds what a reader in somebody's process needs: the file that serves, a clock, and the log of its reads."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from inference.deployment import Deployment
from inference.local_reader.follower import GenerationFollower, ServedFile
from inference.logs import log_through_logging
from inference.monitoring.counters import MOST_ASKED, HitRecorder, RecorderThread
from inference.outcomes import Outcome
from inference.redis.bulk import Pace
from inference.redis.clients import WORKER
from inference.redis.clock import RedisClock
from inference.schema import Block
from inference.settings import load_settings
from inference.store import Manifest

#: the share of its time for which a load may keep Redis busy, if `write_share` is not smaller
MOST_SHARE = 0.5
#: seconds that `close` waits for a look at Redis
_END_S = 15.0

_STALE = Outcome.STALE
_all: WeakSet[LocalStore] = WeakSet()


@dataclass(frozen=True)
class LocalRows:
    """The answers for many ids, in their order; zeros and "" where none was `found`.

    `as_of`: epoch seconds. `block`: field name → array (n, *shape). `is_old`: over the age limit, with `old_outcome`;
    all others have `outcome`. `manifest`: of their generation.
    """

    found: npt.NDArray[np.bool_]
    as_of: npt.NDArray[np.float64]
    block: Block
    is_old: npt.NDArray[np.bool_]
    outcome: Outcome
    manifest: Manifest
    old_outcome: Outcome = Outcome.STALE


class LocalStore:
    """Follows one model's predictions in two threads of this process. Threads may share it.

    Once a second, the answers are added to the counters and to the access log. A forked process begins anew when it
    first reads.
    """

    def __init__(
        self,
        model: str | None,
        *,
        settings: Path | None,
        folder: Path | None,
        limit_s: float | None,
        allows_degraded: bool,
    ) -> None:
        """`settings`: the settings file, None for the usual one. `folder`: of the files, None for the user's cache.

        `limit_s`: the age limit of answers in seconds, None for the model's `ttl`. `allows_degraded`: also gives
        answers that are older, and those of the generation before while a new one loads.

        Raises:
            SettingsError: the settings are wrong.
            UnknownModel: they do not have the model, or have several and none is named.
        """
        log_through_logging()
        self._settings = load_settings(settings)
        self.model, of_model = self._settings.model(model)
        self._limit_s = of_model.batch.ttl if limit_s is None else limit_s
        self._share = min(of_model.batch.write_share, MOST_SHARE)
        self._folder = folder or _cache_folder()
        self._allows_degraded = allows_degraded
        self.clock = RedisClock()
        self._reviving = threading.Lock()
        self._open()
        _all.add(self)

    def get(self, entity_id: str) -> tuple[float, Any, Outcome, Manifest] | None:
        """Return an id's `as_of` (epoch seconds), prediction, outcome and generation; None: there is no such answer."""
        serving = self.follower.serving or self._revive()
        found = None if serving is None else serving.packed.find(entity_id)
        if serving is None or found is None:
            return None
        as_of, value = found
        outcome = serving.outcome
        if self.clock.now() - as_of > self._limit_s:
            if not self._allows_degraded:
                return None
            outcome = _STALE
        # no tuple: the garbage collector would look at each
        self._asked.append(entity_id)
        self._ages[outcome].append(as_of)
        return as_of, value, outcome, serving.packed.manifest

    def get_many(self, entity_ids: Sequence[str]) -> LocalRows | None:
        """Return the answers for many ids; None: no file may answer."""
        serving = self.follower.serving or self._revive()
        if serving is None:
            return None
        rows = serving.packed.find_many(entity_ids)
        is_old = rows.found & (rows.as_of < self.clock.now() - self._limit_s)
        found = rows.found if self._allows_degraded else rows.found & ~is_old
        is_old &= found
        asked = entity_ids if found.all() else [entity_ids[i] for i in np.flatnonzero(found).tolist()]
        ages = [(serving.outcome, rows.as_of[found])]
        if is_old.any():
            ages = [(serving.outcome, rows.as_of[found & ~is_old]), (_STALE, rows.as_of[is_old])]
        self._reads_of_many.append((asked[:MOST_ASKED], ages))
        return LocalRows(found, rows.as_of, rows.block, is_old, serving.outcome, serving.packed.manifest)

    def _revive(self) -> ServedFile | None:
        """Return the file that answers. In a process that was forked, begins to follow: some reads find no file yet."""
        if self._is_forked:
            with self._reviving:
                if self._is_forked:
                    self._open()
        return self.follower.serving

    def close(self) -> None:
        """End the threads, and add the last reads to the counters."""
        _all.discard(self)
        self.follower.stop()
        if not self._is_forked:
            self._recorder.stop()
            self._thread.join(_END_S)
            self._deployment.close()
        self.follower.serving = None

    def forked(self) -> None:
        """Forget the threads, connections and reads, which are the parent process's."""
        atexit.unregister(self._recorder.stop)  # its locks may be held for ever
        self._reviving = threading.Lock()
        self._is_forked = True
        self._forget_reads()
        self.follower.serving = None

    def _open(self) -> None:
        self._forget_reads()
        self._deployment = Deployment(self._settings, WORKER)
        table, keys = self._deployment.predictions(self.model), self._deployment.keys
        self.follower = GenerationFollower(
            table,
            self._folder / f"{keys.prefix}-{self.model}",
            Pace(self._share),
            self.clock,
            keep_previous=self._allows_degraded,
        )
        self._recorder = RecorderThread(self._deployment.async_cache(), keys, self._settings.models, self._log)
        self._thread = threading.Thread(target=self.follower.run, name=f"follower of {self.model}", daemon=True)
        self._thread.start()
        self._is_forked = False

    def _forget_reads(self) -> None:
        self._asked: list[str] = []
        self._ages: dict[Outcome, list[float]] = {outcome: [] for outcome in Outcome}
        self._reads_of_many: list[tuple[Sequence[str], list[tuple[Outcome, npt.NDArray[np.float64]]]]] = []

    def _log(self, recorder: HitRecorder) -> None:
        """Give the reads since the last call to the recorder."""
        now, asked, many = self.clock.now(), _take(self._asked)[:MOST_ASKED], _take(self._reads_of_many)
        parts = [(outcome, np.array(_take(ages))) for outcome, ages in self._ages.items() if ages]
        for entity_ids, of_many in many:
            asked.extend(entity_ids[: MOST_ASKED - len(asked)])
            parts += of_many
        for outcome, as_of_each in parts:
            recorder.record_each(self.model, outcome, now - as_of_each)
        recorder.record_asked(self.model, asked)


def _take(items: list[Any]) -> list[Any]:
    """Take all items out of a list, to which other threads append."""
    taken = items[:]
    del items[: len(taken)]
    return taken


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forecache"


def _after_fork() -> None:
    for store in list(_all):
        store.forked()


os.register_at_fork(after_in_child=_after_fork)
