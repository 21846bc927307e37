"""The models in the memory of a worker process."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from inference.errors import BadInput, ForecacheError, ModelError, ModelUnavailable, StoreUnavailable
from inference.failures import Failures
from inference.features import FeatureContract
from inference.logs import get_logger
from inference.models.load_limits import LoadLimits, bounded_time
from inference.models.loaded import LoadedModel
from inference.models.loading import WARM_UP_ROWS, TryApart, inspect_version_in_subprocess, table_of, try_version
from inference.models.mirror import Downloads, Mirror
from inference.models.mlflow_client import MlflowRegistry, RegisteredVersion
from inference.models.registry import ModelRegistry, VersionRecord
from inference.models.runtimes import LoadOptions
from inference.models.versions import find_versions, wanted_versions
from inference.models.warm_up import SampleRows
from inference.settings import ModelSettings, Settings
from inference.store import Pointer

log = get_logger(__name__)

#: for so long this process remembers the active version and the labels
ACTIVE_MAX_AGE_S = 1.0
#: after a failed load, the version is not tried again for so long, nor for so many times the duration of the load: a
#: load keeps the worker from all other work
RETRY_AFTER_S, RETRY_AFTER_TIMES = 15.0, 9
#: during a load, threads of Python take turns so often: a request waits for its turn several times
_TURN_S = 0.0005
#: a version is refused after so many loads in a row that ended with their process: one may be the fault of the machine
MOST_INTERRUPTED = 3


def is_ruled_out(active: int | None, of_model: ModelSettings) -> bool:
    """Tell whether the settings list versions, and the active one is not among them."""
    return active is not None and isinstance(of_model.versions, list) and active not in of_model.versions


class VersionWaits(ModelUnavailable):
    """Raised when a version has not answered any row yet, while another one answers."""

    def __init__(self, model: str, record: VersionRecord) -> None:
        super().__init__(f"version {record.version} of model {model!r} waits: {record.unproven}")


class ModelHost:
    """Loads versions, keeps them, and returns the active one. Several threads may share it.

    The first worker with a good warm-up decides which version is active, and all workers follow. If an earlier load of
    a version ended with its process, `try_apart` tries the version in a process of its own first. A load that takes
    longer than `[workers] load_timeout` ends this process. `mlflow`: None for the registry of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        try_apart: TryApart = inspect_version_in_subprocess,
        mlflow: MlflowRegistry | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._monotonic = monotonic
        self._try_apart = try_apart
        self._failures = Failures(__name__, "model.start")
        self._lock = threading.RLock()
        self._loaded: dict[tuple[str, int], LoadedModel] = {}
        self._failed: dict[tuple[str, int], tuple[float, str]] = {}
        self._pointers: dict[str, tuple[float, Pointer]] = {}
        source = mlflow or MlflowRegistry(settings.mlflow_uri)
        self._mirrors = {
            model: Mirror(
                registry, model, of_model.registered, source, Downloads(settings, model, source, monotonic=monotonic)
            )
            for model, of_model in settings.models.items()
            if of_model.registered is not None
        }
        #: the registrations of the versions in memory
        self._origins: dict[tuple[str, int], RegisteredVersion | None] = {}
        #: the time of the last request for each version, by `monotonic`
        self._used_at: dict[tuple[str, int], float] = {}
        #: the versions that are being loaded or tried, and the start of that, by `monotonic`
        self._loading: dict[tuple[str, int], float] = {}
        #: model whose features others share → when its contract was read, by `monotonic`, and the contract
        self._written_by: dict[str, tuple[float, FeatureContract]] = {}

    def start(self, models: Collection[str] | None = None) -> None:
        """Load and warm up the active version of each of these models (None: of all), and versions with labels.

        If a model has no active version, activates the newest one that answers rows, else the newest good one.
        Refuses, records and logs a bad version, and goes on with other versions and models. `Rollout` loads versions
        that are newer than the active one.

        Raises:
            StoreUnavailable: Redis did not answer in time; may be called again.
        """
        for model in self._settings.models:
            if models is not None and model not in models:
                continue
            try:
                self._start_model(model)
            except StoreUnavailable:
                raise
            except ForecacheError as error:
                log.error("model.refused", model=model, error=error.message)  # noqa: TRY400 - the sentence says it all
            except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
                self._failures.tell(error, model, model=model)

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        """Return a version, and load it if needed. None means the active one of a second ago at most.

        Raises:
            UnknownModel: it is not in the settings.
            ModelUnavailable: no version is active yet, or that version cannot be loaded.
            StoreUnavailable: Redis did not answer in time.
        """
        self._settings.model(model)  # raises UnknownModel
        number = self._active_version(model) if version is None else version
        loaded = self._loaded.get((model, number)) or self._load_once(model, number)
        self._used_at[model, number] = self._monotonic()
        return loaded

    def share_out(
        self, model: str, entity_ids: Sequence[str], positions: Sequence[int]
    ) -> list[tuple[LoadedModel, list[int]]]:
        """Divide positions between the active version and the canary, which computes the entities of its share.

        A canary that is not in this process's memory computes nothing: the active version computes its entities.

        Raises: see `get`.
        """
        active = self.get(model)
        labels = self._pointer(model).labels
        canary = labels.canary
        if not labels.canary_share or canary == active.record.version or (model, canary) not in self._loaded:
            return [(active, list(positions))]
        of_active: list[int] = []
        of_canary: list[int] = []
        for one in positions:
            (of_active if labels.canary_for(model, entity_ids[one]) is None else of_canary).append(one)
        sides = [(active, of_active)] if of_active or not of_canary else []
        return [*sides, (self.get(model, canary), of_canary)] if of_canary else sides

    def learn(self, model: str, pointer: Pointer) -> None:
        """Take over a model's active version and labels, which were just read."""
        self._pointers[model] = (self._monotonic(), pointer)

    def load(self, model: str, version: int, *, must_answer: bool = False) -> LoadedModel:
        """Load a version beside those in memory, even if it failed a moment ago, and record it.

        Replaces one in memory only if `is_replaced`; that one answers until then, and goes on if the new one is bad.

        Raises:
            VersionWaits: it `must_answer` rows, and answered none. It is recorded, and not kept in memory.
            UnknownModel, ModelUnavailable, StoreUnavailable: see `get`.
        """
        self._settings.model(model)  # raises UnknownModel
        with self._lock:
            key = (model, version)
            self._failed.pop(key, None)
            before, origin = self._loaded.get(key), self._origins.get(key)
            loaded = self._load(model, version) if self.is_replaced(model, version) else self._load_once(model, version)
            if must_answer and not loaded.record.is_proved:
                del self._loaded[key]
                if before is not None and before is not loaded:
                    self._loaded[key], self._origins[key] = before, origin
                raise VersionWaits(model, loaded.record)
        return loaded

    def unload_idle(self, model: str, *, keep: Collection[int | None], idle_s: float) -> None:
        """Unload a model's versions without a request within `idle_s`, but for those to keep.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        spare = {*keep, self._registry.active_version(model)}
        since = self._monotonic() - idle_s
        idle = [one for one in self.versions().get(model, ()) if one not in spare and self._used_at[model, one] < since]
        for version in idle:
            # a computation that uses it now holds it until its end
            del self._loaded[model, version]
            log.info("model.unloaded", model=model, version=version)
        if idle:
            # a model's graph refers to itself: half a megabyte stays until the collector runs
            gc.collect()

    def versions(self) -> dict[str, tuple[int, ...]]:
        """Return the versions of each model in this process's memory, oldest first."""
        held = sorted(self._loaded)
        return {model: tuple(version for name, version in held if name == model) for model, _ in held}

    def loading(self) -> list[tuple[str, int, float]]:
        """Return the versions that this process loads or tries now: model, version, for how many seconds."""
        now = self._monotonic()
        return [(model, version, now - since) for (model, version), since in list(self._loading.items())]

    def sample_rows(self, model: str) -> SampleRows:
        """Return the rows to try a model's versions with."""
        table = table_of(self._settings, self._settings.models[model])
        return SampleRows(table, partial(self._registry.stored_rows, self._settings.features_owner(model)))

    def written_by(self, model: str) -> FeatureContract | None:
        """Return the contract by which another model's loads and runs write the features of a model; None: its own.

        Raises:
            ModelUnavailable: no version of that other model is active yet.
        """
        owner = self._settings.features_owner(model)
        if owner == model:
            return None
        read_at, contract = self._written_by.get(owner, (-math.inf, None))
        if contract is None or self._monotonic() - read_at > ACTIVE_MAX_AGE_S:
            contract = self._registry.active(owner).contract
            self._written_by[owner] = self._monotonic(), contract
        return contract

    def mirror(self, model: str) -> Mirror | None:
        """Return this machine's versions of a registered model; None for a model in a folder of the user's."""
        return self._mirrors.get(model)

    def is_replaced(self, model: str, version: int) -> bool:
        """Tell whether a version in memory has another registration than the one that was downloaded since."""
        mirror, key = self.mirror(model), (model, version)
        if mirror is None or key not in self._loaded:
            return False
        return mirror.here.origin(version) not in (None, self._origins.get(key))

    def is_proved(self, model: str, version: int) -> bool:
        """Tell whether a version in memory has answered rows."""
        return self._loaded[model, version].record.is_proved

    def _start_model(self, model: str) -> None:
        of_model = self._settings.models[model]
        pointer = self._registry.pointer(model)
        active = pointer.active_version
        found, candidates = self._find(model, pointer)
        if of_model.versions == "latest":
            # do not try again a version that a rollback took out of service
            candidates = [one for one in candidates if one not in pointer.held_versions]
        labels = pointer.labels
        candidates = [one for one in candidates if one != labels.canary]
        for first in (labels.stable, active):
            if first in found and not is_ruled_out(first, of_model):
                candidates = [first, *(one for one in candidates if one != first)]
        good = self._load_good(model, candidates, trusted={labels.stable, active})
        replaceable = active is None or is_ruled_out(active, of_model)
        is_known = bool(good) and good[0] in (labels.stable, active)
        may_be_new = of_model.activate == "newest" and (replaceable or (bool(good) and self.is_proved(model, good[0])))
        if good and (is_known or may_be_new):
            activated = self._registry.activate(model, good[0], force=is_ruled_out(active, of_model))
            log.info("model.ready", model=model, version=good[0], activated=activated)
        for version in found.keys() & {active, *labels.versions.values()} - set(good):
            if not is_ruled_out(version, of_model):
                self._try(model, version)

    def _find(self, model: str, pointer: Pointer) -> tuple[dict[int, Path], list[int]]:
        """Return version → folder, and the versions that may answer, the first choice first.

        Raises:
            ModelError, ModelUnavailable, SettingsError: there is none.
        """
        of_model, mirror = self._settings.models[model], self.mirror(model)
        if mirror is None:
            found = find_versions(self._settings.path(of_model.path))
            return found, wanted_versions(found, of_model.versions)
        found = mirror.folders(mirror.choose(), (pointer.active_version, *pointer.labels.versions.values()))
        if not found:
            raise ModelError(f"{of_model.path} cannot be had: {mirror.trouble}")
        return found, list(found)

    def _folder(self, model: str, version: int) -> Path | None:
        """Return a version's folder, downloaded if need be; None if there is none.

        Raises: see `_find`.
        """
        mirror = self.mirror(model)
        return mirror.folder_of(version) if mirror else find_versions(self._settings.model_folder(model)).get(version)

    def _load_good(self, model: str, candidates: list[int], *, trusted: Collection[int | None]) -> list[int]:
        """Load versions in this order. Return the good ones, first those that are trusted or have answered rows.

        If the latest version is wanted, keeps only the first of these.
        """
        only_one = self._settings.models[model].versions == "latest"
        sure: list[int] = []
        unsure: list[int] = []
        for version in candidates:
            if self._try(model, version) is None:
                continue
            (sure if version in trusted or self.is_proved(model, version) else unsure).append(version)
            if only_one and sure:
                break
        good = [*sure, *unsure]
        if only_one:
            for version in good[1:]:
                del self._loaded[model, version]
        return good[:1] if only_one else good

    def _try(self, model: str, version: int) -> LoadedModel | None:
        try:
            return self._load_once(model, version)
        except ModelUnavailable as error:
            log.error("model.version_refused", model=model, version=version, error=error.message)  # noqa: TRY400
            return None

    def _load_once(self, model: str, version: int) -> LoadedModel:
        with self._lock:
            return self._loaded.get((model, version)) or self._load(model, version)

    def _active_version(self, model: str) -> int:
        version = self._pointer(model).active_version
        if version is None:
            raise ModelUnavailable(f"model {model!r} has no active version yet: none could be loaded")
        return version

    def _pointer(self, model: str) -> Pointer:
        known = self._pointers.get(model)
        now = self._monotonic()
        if known is not None and now - known[0] < ACTIVE_MAX_AGE_S:
            return known[1]
        pointer = self._registry.pointer(model)
        if pointer.active_version is not None:  # while there is none, every request looks for one
            self.learn(model, pointer)
        return pointer

    def _load(self, model: str, version: int) -> LoadedModel:
        key = (model, version)
        failed = self._failed.get(key)
        if failed is not None and self._monotonic() < failed[0]:
            raise ModelUnavailable(failed[1])
        known = self._registry.versions(model).get(version)
        began = self._monotonic()
        mirror = self.mirror(model)
        origin = mirror.here.origin(version) if mirror else None
        result = self._try_folder(model, version, known)
        if isinstance(result, LoadedModel):
            self._origins[key] = mirror.here.origin(version) if mirror and origin is None else origin
            self._share_proof(model, result)
            self._registry.put(model, result.record)
            self._failed.pop(key, None)
            self._used_at[key] = self._monotonic()
            self._loaded[key] = result
            return result
        message = f"version {version} of model {model!r} cannot be served: {result.error}"
        now = self._monotonic()
        self._failed[key] = (now + max(RETRY_AFTER_S, RETRY_AFTER_TIMES * (now - began)), message)
        if known is None or known.state == "refused":
            # keep a good record: the fault (a lost mount) may be this process's
            self._registry.put(model, result)
        raise ModelUnavailable(message)

    def _share_proof(self, model: str, loaded: LoadedModel) -> None:
        """Count a version as proved if another worker, with rows that this one lacks, has proved it meanwhile.

        A version that computes no rows may replace another such one.
        """
        ours = loaded.record
        if ours.is_proved:
            return
        known = self._registry.versions(model)
        theirs = known.get(ours.version)
        same = theirs is not None and (theirs.fingerprint, theirs.contract) == (ours.fingerprint, ours.contract)
        proved = theirs is not None and same and theirs.is_proved
        if proved or (not ours.computes_rows and self._answers_without_rows(model, known, other_than=ours.version)):
            loaded.record = replace(ours, unproven=None)

    def _answers_without_rows(self, model: str, known: Mapping[int, VersionRecord], *, other_than: int) -> bool:
        active = self._registry.active_version(model)
        record = None if active is None or active == other_than else known.get(active)
        return record is not None and record.state == "ready" and not record.computes_rows

    def _try_folder(self, model: str, version: int, known: VersionRecord | None) -> LoadedModel | VersionRecord:
        of_model = self._settings.models[model]
        path = self._settings.model_folder(model)
        sizes = (*WARM_UP_ROWS, of_model.realtime.max_micro_batch)
        workers = self._settings.workers
        options = LoadOptions(
            allow_code=of_model.allow_code,
            gpu_memory_share=workers.gpu_memory_share,
            code_folder=self._settings.root,
            signature=of_model.signature,
            engine_hosts=None if workers.engine_hosts is None else tuple(workers.engine_hosts),
        )
        try:
            folder = self._folder(model, version)
        except BadInput as error:
            return VersionRecord.refused(version, error.message, inspected_at=time.time())
        if folder is None:
            return VersionRecord.refused(version, f"it is not in {path}", inspected_at=time.time())
        unfinished = self._registry.unfinished_loads(model)
        if times := unfinished.interrupted(version):
            log.warning("model.load_was_cut_off", model=model, version=version, times=times)
            reason = self._why_it_ends_workers(model, version, times)
            if reason is not None:
                return VersionRecord.refused(version, reason, inspected_at=time.time())
        limits, what = LoadLimits.of(workers, folder), f"version {version} of model {model!r}"
        with unfinished.mark(version), self._listed(model, version), bounded_time(limits, what), _short_turns():
            return try_version(
                model, path, version, folder, options=options,
                rows=self.sample_rows(model), known=known, warm_up_rows=sizes, limits=limits,
            )  # fmt: skip

    def _why_it_ends_workers(self, model: str, version: int, times: int) -> str | None:
        """Return why a version that ended so many workers is refused; None to load it once more."""
        if times >= MOST_INTERRUPTED:
            return (
                f"the last {times} workers that loaded it here ended meanwhile, and their logs say how: put it right, "
                f"then `forecache models reload {model}`"
            )
        try:
            with self._listed(model, version):
                self._try_apart(self._settings, model, version)
        except ModelError as error:
            return error.message
        return None

    @contextmanager
    def _listed(self, model: str, version: int) -> Iterator[None]:
        """List a version in `loading` while the block runs."""
        self._loading[model, version] = self._monotonic()
        try:
            yield
        finally:
            del self._loading[model, version]


@contextmanager
def _short_turns() -> Iterator[None]:
    """Have Python interrupt the thread of a load after half a millisecond, not after five, if a request waits."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
