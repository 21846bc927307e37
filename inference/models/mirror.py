"""Keeps versions of a registered model as version folders on this machine, and follows the registry's choice.

All workers of a machine share the folders: one downloads, beside the place, and renames it when it is complete. Redis
keeps the version that the registry named last. So all workers aim at the same one, and a registry that does not answer
changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from inference import host_locks
from inference.errors import ForecacheError, ModelError, ModelUnavailable
from inference.logs import get_logger
from inference.models.mlflow_client import MlflowRegistry, RegisteredVersion, read_origin
from inference.models.registry import ModelRegistry, RegistryChoice, VersionRecord
from inference.settings import Settings
from inference.settings.registered import RegisteredModel

log = get_logger(__name__)

#: so many versions stay on this machine beside those in use: an alias may move back
_KEPT = 3
#: a failed download is not repeated for so long, nor for so many times as long as it took
_RETRY_AFTER_S, _RETRY_AFTER_TIMES = 30.0, 9
_UNFINISHED = ".new-"


class Downloads:
    """The versions of one model on this machine. Several processes and threads may use it."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        source: MlflowRegistry,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._model = model
        self._folder = settings.model_folder(model)
        self._source = source
        self._monotonic = monotonic
        self._failed: dict[int, tuple[float, ForecacheError]] = {}

    def fetch(self, wanted: RegisteredVersion) -> Path:
        """Return the folder of a version. Downloads it if it is missing, unless that failed a moment ago.

        Raises:
            ModelError: the registry has no such version, or it is none that can be served.
            ModelUnavailable: the registry or the store of its artifacts did not answer, or not in time.
            SettingsError: MLflow's client is not installed.
        """
        place = self._folder / str(wanted.version)
        if self.holds(wanted):
            return place
        until, failure = self._failed.get(wanted.version, (0.0, None))
        if failure is not None and self._monotonic() < until:
            raise failure
        began = self._monotonic()
        try:
            is_new = self._download(wanted, place)
        except ForecacheError as error:
            now = self._monotonic()
            wait_s = max(_RETRY_AFTER_S, _RETRY_AFTER_TIMES * (now - began))
            self._failed[wanted.version] = now + wait_s, error
            raise
        self._failed.pop(wanted.version, None)
        if is_new:
            took_s = round(self._monotonic() - began, 2)
            log.info("model.downloaded", model=self._model, name=wanted.name, version=wanted.version, took_s=took_s)
        return place

    def try_again(self) -> None:
        """Forget failed downloads, so that the next look repeats them."""
        self._failed.clear()

    def sweep(self, keep: Collection[int | None]) -> None:
        """Remove versions that are not to be kept, but for the newest downloads, and what dead processes left."""
        numbered = [one for one in self._folder.glob("[0-9]*") if one.name.isdecimal() and int(one.name) not in keep]
        spare = sorted(numbered, key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT:]
        left = list(self._folder.glob(f"{_UNFINISHED}*"))
        if not spare and not left:
            return
        with host_locks.holding(self._folder) as held:
            if not held:
                return
            for one in spare:
                log.info("model.download_removed", model=self._model, version=int(one.name))
            for one in [*spare, *left]:
                shutil.rmtree(one, ignore_errors=True)

    def origin(self, version: int) -> RegisteredVersion | None:
        """Return the registration of a version that is here; None if it is not, or not complete."""
        return read_origin(self._folder / str(version))

    def holds(self, wanted: RegisteredVersion) -> bool:
        """Whether a version is here, complete, and that of this registration."""
        origin = self.origin(wanted.version)
        if origin is None or origin.name != wanted.name:
            return False
        return wanted.created_at is None or wanted.created_at == origin.created_at

    def _download(self, wanted: RegisteredVersion, place: Path) -> bool:
        """Download a version, and tell whether this process did; else another one was first."""
        timeout_s = self._settings.workers.load_timeout
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with host_locks.holding(self._folder, wait_s=timeout_s) as held:
                if self.holds(wanted):
                    return False
                if not held:
                    raise ModelUnavailable(f"another process downloads to {self._folder} for over {timeout_s:g} s")
                new = self._folder / f"{_UNFINISHED}{os.getpid()}"
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                self._source.download(wanted, new / "version", timeout_s=timeout_s)
                if place.exists():  # of a model that was registered anew, or of another one
                    place.rename(new / "old")
                (new / "version").rename(place)
                shutil.rmtree(new, ignore_errors=True)
                return True
        except OSError as error:
            raise ModelError(
                f"{self._folder} cannot hold downloads ({error.strerror}): set [mlflow] folder to one that the workers "
                "can write",
                field="path",
            ) from error


class Mirror:
    """Follows what the registry names for one model, and has it on this machine."""

    def __init__(
        self, registry: ModelRegistry, model: str, registered: RegisteredModel, source: MlflowRegistry, here: Downloads
    ) -> None:
        self._registry = registry
        self._model = model
        self._registered = registered
        self._source = source
        self.here = here
        #: why the registry or a version of it could not be had at the last look; None: nothing failed
        self.trouble: str | None = None

    def choose(self) -> RegisteredVersion:
        """Return the version that the registry names now, or if it does not answer, the last one that it named.

        Raises:
            ModelError, ModelUnavailable, SettingsError: it names none, and has never named one.
            StoreUnavailable: Redis did not answer in time.
        """
        self.trouble = None
        of = self._registered
        if of.version is not None and self.here.holds(RegisteredVersion(of.name, of.version)):
            return RegisteredVersion(of.name, of.version)  # needs no registry
        known = self._registry.choice(self._model, str(of))
        try:
            found = self._source.find(of)
        except ForecacheError as error:
            if known is None:
                raise
            self.trouble = error.message
            return RegisteredVersion(of.name, known.version, known.created_at)
        if known is None or (known.version, known.created_at) != (found.version, found.created_at):
            self._registry.put_choice(self._model, RegistryChoice(str(of), found.version, found.created_at))
            before = None if known is None else known.version
            log.info("model.registry_names", model=self._model, path=str(of), version=found.version, instead_of=before)
        return found

    def folders(self, chosen: RegisteredVersion, others: Iterable[int | None]) -> dict[int, Path]:
        """Return version → folder of the chosen version, then of others. Downloads those that are missing.

        Leaves out a version that cannot be had, and notes the reason as `trouble`. A refused one is recorded.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        wanted = [chosen, *(RegisteredVersion(chosen.name, one) for one in others if one not in (None, chosen.version))]
        found = {}
        for one in dict.fromkeys(wanted):
            try:
                found[one.version] = self.here.fetch(one)
            except ForecacheError as error:
                self.trouble = self.trouble or error.message
                if isinstance(error, ModelError):
                    self._record_refusal(one.version, error.message)
        return found

    def folder_of(self, version: int) -> Path:
        """Return the folder of a version. Downloads it if it is missing.

        Raises: see `Downloads.fetch`.
        """
        return self.here.fetch(RegisteredVersion(self._registered.name, version))

    def _record_refusal(self, version: int, reason: str) -> None:
        known = self._registry.versions(self._model).get(version)
        if known is None or (known.state == "refused" and known.error != reason):
            self._registry.put(self._model, VersionRecord.refused(version, reason, inspected_at=time.time()))
