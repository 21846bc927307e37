"""Brings new versions of a model into service while the worker goes on answering with the old one.

A rollout waits until the folder of a new version does not change between two looks (somebody may be copying it). It
tries the version in a process of its own (it may crash) with rows of the model's table, loads it and warms it up beside
the active version, and activates it once every worker that answers requests has it in memory. So no request has to wait
for a load. A version that was registered anew under its number is tried and loaded alike, and replaces the one in
memory. The workers of a host try and load one after the other, so that all others answer. A version that has answered
no row waits. Versions with labels stay in memory too. While a version is labelled stable, no other is activated; the
canary never is. With `activate = "by-label"` only a version that is labelled stable is activated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import NamedTuple

from inference import host_locks
from inference.errors import BadInput, ModelError, ModelUnavailable
from inference.logs import get_logger
from inference.models.host import ModelHost, VersionWaits, is_ruled_out
from inference.models.loading import TryApart, inspect_version_in_subprocess
from inference.models.mirror import Mirror
from inference.models.registry import ModelRegistry, VersionRecord
from inference.models.remote_file import REMOTE_FILE
from inference.models.versions import files_in, find_versions, fingerprint, unusable_folders, wanted_versions
from inference.settings import Settings
from inference.store import Pointer

log = get_logger(__name__)

#: a version that is not wanted any more leaves memory after so long without a request
UNLOAD_AFTER_S = 60.0

#: the versions in a worker's memory: model → versions
Held = Mapping[str, tuple[int, ...]]

#: the names, sizes and times of a folder's files
_FolderState = frozenset[tuple[str, int, int]]


class _Refusal(NamedTuple):
    """Why a version was not loaded, and the state of its folder; if it waits, also the state of the `rows` to try."""

    folder: _FolderState
    message: str
    rows: str | None = None


class Rollout:
    """Watches one model's folder for one worker. Only one thread at a time may call `look`.

    `answers`: this worker answers requests. One that does not brings versions into service only while no other does.
    `others` returns what each other worker that answers requests has in memory: model → versions.
    """

    def __init__(
        self,
        settings: Settings,
        host: ModelHost,
        registry: ModelRegistry,
        model: str,
        *,
        answers: bool,
        others: Callable[[], Sequence[Held]],
        try_apart: TryApart = inspect_version_in_subprocess,
    ) -> None:
        self._settings = settings
        self._host = host
        self._registry = registry
        self._model = model
        self._answers = answers
        self._others = others
        self._try_apart = try_apart
        self._seen: dict[int, _FolderState] = {}
        self._refused: dict[int, _Refusal] = {}
        self._trouble: str | None = None
        #: the version that a registry names, also if it is older than the active one; None for a folder of the user's
        self._chosen: int | None = None

    def look(self, *, again: bool = False) -> bool:
        """Take all steps that are possible now. Returns False while a version is under way: look again soon.

        `again`: try also versions that were refused or ended workers before, and folders that change now.

        Raises:
            StoreUnavailable: Redis did not answer in time; may be called again.
        """
        if again:
            self._refused.clear()
            self._registry.unfinished_loads(self._model).forget()
            if self._mirror is not None:
                self._mirror.here.try_again()
        others = self._others()
        if others and not self._answers:
            self._host.unload_idle(self._model, keep=(), idle_s=UNLOAD_AFTER_S)
            return True
        pointer = self._registry.pointer(self._model)
        if pointer.active_version is not None:
            self._host.learn(self._model, pointer)
        labelled = set(pointer.labels.versions.values())
        folders = self._folders(pointer)
        newest, settled = self._prepare(folders, pointer, again=again)
        stable = pointer.labels.stable
        may_be_new = self._settings.models[self._model].activate == "newest"
        wanted = stable if stable in folders else newest if may_be_new else None
        arrived = wanted is None or not self._is_loaded(wanted) or self._activate(wanted, others, pointer)
        keep = folders if self._settings.models[self._model].versions != "latest" else {newest, *labelled}
        self._host.unload_idle(self._model, keep=keep, idle_s=UNLOAD_AFTER_S)
        if self._mirror is not None:
            in_memory = self._host.versions().get(self._model, ())
            self._mirror.here.sweep({*folders, *in_memory, *labelled, pointer.active_version})
        return settled and arrived

    @property
    def _mirror(self) -> Mirror | None:
        return self._host.mirror(self._model)

    def _folders(self, pointer: Pointer) -> dict[int, Path]:
        """Return the wanted versions, the first choice first. Logs a bad folder or registry once, and returns none.

        A version with a label is wanted, unless the settings list versions without it.
        """
        of_model = self._settings.models[self._model]
        labelled = set(pointer.labels.versions.values())
        try:
            if self._mirror is not None:
                return self._registered(self._mirror, pointer)
            path = self._settings.path(of_model.path)
            found = find_versions(path)
            wanted = {version: found[version] for version in wanted_versions(found, of_model.versions)}
        except (BadInput, ModelUnavailable) as error:
            self._tell("model.folder_unusable", error.message)
            return {}
        absent = sorted(labelled - wanted.keys())
        troubles = [
            *(f"version {one} has a label, and is not in the folder or not among versions" for one in absent[:1]),
            *unusable_folders(path),
        ]
        self._tell("model.version_unusable", "; ".join(troubles) or None)
        return wanted

    def _registered(self, mirror: Mirror, pointer: Pointer) -> dict[int, Path]:
        """Return the version that the registry names, the active one and those with labels.

        Raises: see `Mirror.choose`.
        """
        chosen = mirror.choose()
        self._chosen = chosen.version
        found = mirror.folders(chosen, (pointer.active_version, *pointer.labels.versions.values()))
        held = (
            f"the registry names version {chosen.version}, which a rollback holds: `forecache batch release` lets it go"
            if chosen.version in pointer.held_versions
            else None
        )
        self._tell("model.registry_trouble", mirror.trouble or held)
        return found

    def _tell(self, event: str, trouble: str | None) -> None:
        """Log a trouble when it begins or changes, and when that of a registry is over."""
        if trouble and trouble != self._trouble:
            log.warning(event, model=self._model, error=trouble)
        if self._trouble and not trouble and self._mirror is not None:
            log.info("model.registry_answers", model=self._model)
        self._trouble = trouble

    def _prepare(self, folders: Mapping[int, Path], pointer: Pointer, *, again: bool) -> tuple[int | None, bool]:
        """Load versions that are new or have a label. Return the newest good one but for the canary, and True if no
        folder is still changing.
        """
        only_one = self._settings.models[self._model].versions == "latest"
        labels = pointer.labels
        labelled = set(labels.versions.values())
        newest, settled = None, True
        for version, folder in folders.items():
            if version not in labelled:
                is_older = version < (pointer.active_version or 0) and version != self._chosen
                too_old = is_older and not self._is_loaded(version)
                if version in pointer.held_versions or (only_one and (newest is not None or too_old)):
                    continue
            if not self._is_loaded(version) or self._host.is_replaced(self._model, version):
                # a download is complete before it gets its name
                if not again and self._mirror is None and not self._stands_still(version, folder):
                    settled = False
                    continue
                if not self._load(version, folder, pointer, may_wait=version not in labelled):
                    continue
            if newest is None and version != labels.canary and self._may_answer(version, pointer):
                newest = version
        return newest, settled

    def _is_loaded(self, version: int) -> bool:
        return version in self._host.versions().get(self._model, ())

    def _stands_still(self, version: int, folder: Path) -> bool:
        state = _folder_state(folder)
        before, self._seen[version] = self._seen.get(version), state
        return state == before

    def _may_answer(self, version: int, pointer: Pointer) -> bool:
        """Tell whether a version in memory may replace the active one."""
        waits = not self._host.is_proved(self._model, version) and self._is_served(version, pointer)
        return not waits and version not in pointer.held_versions

    def _is_served(self, version: int, pointer: Pointer) -> bool:
        """Tell whether another version is active, and may stay so."""
        active = pointer.active_version
        return active not in (None, version) and not is_ruled_out(active, self._settings.models[self._model])

    def _load(self, version: int, folder: Path, pointer: Pointer, *, may_wait: bool) -> bool:
        """Load one version, unless its folder is the same as when it was refused. Tell whether it is in memory now.

        A remote engine may be back although its folder is the same, and cannot crash this process. `may_wait`: while
        another version answers, this one is not loaded before it has answered rows.
        """
        state, is_remote = _folder_state(folder), (folder / REMOTE_FILE).exists()
        refused = self._refused.get(version)
        if (
            refused is not None
            and refused.folder == state
            and not is_remote
            and not self._is_over(refused, version, may_wait=may_wait)
        ):
            return False
        is_replaced = self._host.is_replaced(self._model, version)
        must_answer = may_wait and (is_replaced or self._is_served(version, pointer))
        try:
            # the workers of a host wait for each other
            with host_locks.holding(self._settings.root, wait_s=self._settings.workers.load_timeout):
                if (is_replaced or pointer.active_version not in (None, version)) and not is_remote:
                    self._try_where_it_can_crash(version, folder)
                self._host.load(self._model, version, must_answer=must_answer)
        except VersionWaits as error:
            now = _Refusal(state, error.message, rows=self._host.sample_rows(self._model).state())
        except (BadInput, ModelUnavailable) as error:
            now = _Refusal(state, error.message)
        else:
            self._refused.pop(version, None)
            return True
        self._refused[version] = now
        if refused is None or refused.message != now.message:
            event = "model.version_refused" if now.rows is None else "model.version_waits"
            log.error(event, model=self._model, version=version, error=now.message)
        return False

    def _is_over(self, refused: _Refusal, version: int, *, may_wait: bool) -> bool:
        """Tell whether a version need not wait any more: the rows to try have changed, it must not wait, or another
        worker has proved it.
        """
        if refused.rows is None:
            return False
        known = self._registry.versions(self._model).get(version)
        proved = known is not None and known.is_proved
        return not may_wait or proved or refused.rows != self._host.sample_rows(self._model).state()

    def _try_where_it_can_crash(self, version: int, folder: Path) -> None:
        """Raise ModelError for a version that cannot be served. Does not try one that another worker has proved."""
        known = self._registry.versions(self._model).get(version)
        if known is not None and known.is_proved and known.fingerprint == fingerprint(folder):
            return
        try:
            self._try_apart(self._settings, self._model, version)
        except ModelError as error:
            if known is None or not known.is_proved:
                refused = VersionRecord.refused(version, error.message, inspected_at=time.time())
                self._registry.put(self._model, refused)
            raise

    def _activate(self, version: int, others: Sequence[Held], pointer: Pointer) -> bool:
        """Make a version the active one. Returns False while another worker has still to load it."""
        ruled_out = is_ruled_out(pointer.active_version, self._settings.models[self._model])
        is_older = version < (pointer.active_version or 0)
        may_be_older = ruled_out or version in (pointer.labels.stable, self._chosen)
        if version == pointer.active_version or (is_older and not may_be_older):
            return True
        if any(version not in held.get(self._model, ()) for held in others):
            return False
        if self._registry.activate(self._model, version, force=ruled_out, backwards=version == self._chosen):
            log.info("model.activated", model=self._model, version=version, instead_of=pointer.active_version)
            self._host.learn(self._model, self._registry.pointer(self._model))
        return True


def _folder_state(folder: Path) -> _FolderState:
    files = set()
    for one, status in files_in(folder):
        try:
            status = one.stat() if S_ISLNK(status.st_mode) else status
        except OSError:  # a link to nothing, or to itself
            continue
        if S_ISREG(status.st_mode):
            files.add((one.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return frozenset(files)
