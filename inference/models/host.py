"""The models that a worker process holds in memory."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from inference.errors import BadInput, ForecacheError, ModelError, ModelUnavailable, StoreUnavailable
from inference.failures import Failures
from inference.logs import get_logger
from inference.models.load_limits import LoadLimits, bounded_time
from inference.models.loaded import LoadedModel
from inference.models.loading import WARM_UP_ROWS, TryApart, inspect_version_in_subprocess, table_of, try_version
from inference.models.registry import ModelRegistry, VersionRecord
from inference.models.runtimes import LoadOptions
from inference.models.versions import find_versions, wanted_versions
from inference.models.warm_up import RealRows
from inference.settings import ModelSettings, Settings
from inference.store import Pointer

log = get_logger(__name__)

#: how old this process's knowledge of the active version and of the labels may be
ACTIVE_MAX_AGE_S = 1.0
#: a version that failed to load is not tried again for so long, and for so many times as long as the try took, since
#: whoever asks for it keeps the worker from all else meanwhile
RETRY_AFTER_S, RETRY_AFTER_TIMES = 15.0, 9
#: a version that has cut so many workers of this host off in a row is refused: one may be the machine's fault, or the
#: operator's
MOST_CUT_OFF = 3


def is_ruled_out(active: int | None, of_model: ModelSettings) -> bool:
    """Return whether the settings list versions, and the one that answers is none of them."""
    return active is not None and isinstance(of_model.versions, list) and active not in of_model.versions


class VersionWaits(ModelUnavailable):
    """Raised when nothing shows yet that a version answers, while another one does."""

    def __init__(self, model: str, record: VersionRecord) -> None:
        super().__init__(f"version {record.version} of model {model!r} waits: {record.unproven}")


class ModelHost:
    """Loads versions, keeps them, and gives out the one that is active. Safe to call from several threads.

    Which version is active was decided once, by the first worker whose warm-up was good; all obey that. A version
    whose load was cut off before, by the end of its process, is tried in a process of its own first (`try_apart`). A
    load that takes longer than `[workers] load_timeout` ends this process.
    """

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        try_apart: TryApart = inspect_version_in_subprocess,
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
        #: when each version was last asked for, by `monotonic`
        self._used_at: dict[tuple[str, int], float] = {}
        #: the versions that are being loaded or tried, and since when, by `monotonic`
        self._loading: dict[tuple[str, int], float] = {}

    def start(self, models: Collection[str] | None = None) -> None:
        """Load and warm up the version of each of these models (None: of all) that answers.

        Where none does, the newest is activated that has answered rows, else the newest good one. Versions that have
        labels are loaded too.

        A bad version is refused, recorded and logged; it stops neither other versions nor other models. Versions
        that are newer than the one that answers are for `Rollout`.

        Raises:
            StoreUnavailable: Redis did not answer in time; may be called again.
        """
        for model, of_model in self._settings.models.items():
            if models is not None and model not in models:
                continue
            try:
                self._start_model(model, of_model)
            except StoreUnavailable:
                raise
            except ForecacheError as error:
                log.error("model.refused", model=model, error=error.message)  # noqa: TRY400 - the sentence says it all
            except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
                self._failures.tell(error, model, model=model)

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        """Return a version, loading it when needed; None means the active one, known to within a second.

        Raises:
            UnknownModel: it is not in the settings.
            ModelUnavailable: none is active yet, or that version cannot be loaded.
            StoreUnavailable: Redis did not answer in time.
        """
        of_model = self._settings.model(model)[1]
        number = self._active_version(model) if version is None else version
        loaded = self._loaded.get((model, number)) or self._load_once(model, of_model, number)
        self._used_at[model, number] = self._monotonic()
        return loaded

    def share_out(
        self, model: str, entity_ids: Sequence[str], positions: Sequence[int]
    ) -> list[tuple[LoadedModel, list[int]]]:
        """Return who computes which of these positions: the active version, and the canary for entities on its side.

        A canary that this process does not hold (yet) computes nothing: its entities are the active version's.

        Raises: see `get`.
        """
        active = self.get(model)
        labels = self._pointer(model).labels
        canary = labels.canary
        if not labels.canary_share or canary == active.record.version or (model, canary) not in self._loaded:
            return [(active, list(positions))]
        own: list[int] = []
        of_canary: list[int] = []
        for one in positions:
            (own if labels.canary_for(model, entity_ids[one]) is None else of_canary).append(one)
        sides = [(active, own)] if own or not of_canary else []
        return [*sides, (self.get(model, canary), of_canary)] if of_canary else sides

    def learn(self, model: str, pointer: Pointer) -> None:
        """Obey from now on what was just read of a model's active version and labels."""
        self._pointers[model] = (self._monotonic(), pointer)

    def load(self, model: str, version: int, *, must_answer: bool = False) -> LoadedModel:
        """Load a version beside those in memory and record it, also one that failed a moment ago.

        Raises:
            VersionWaits: it `must_answer`, and nothing shows that it does; it is recorded, and not kept in memory.
            UnknownModel, ModelUnavailable, StoreUnavailable: see `get`.
        """
        of_model = self._settings.model(model)[1]
        with self._lock:
            self._failed.pop((model, version), None)
            loaded = self._load_once(model, of_model, version)
            if must_answer and not loaded.record.is_proved:
                del self._loaded[model, version]
                raise VersionWaits(model, loaded.record)
        return loaded

    def unload_idle(self, model: str, *, keep: Collection[int | None], idle_s: float) -> None:
        """Let go of a model's versions that nobody has asked for within `idle_s`, but for those to keep.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        spare = {*keep, self._registry.active_version(model)}
        since = self._monotonic() - idle_s
        idle = [one for one in self.versions().get(model, ()) if one not in spare and self._used_at[model, one] < since]
        for version in idle:
            # whoever computes with it at this moment still holds it
            del self._loaded[model, version]
            log.info("model.unloaded", model=model, version=version)
        if idle:
            # a model's graph refers to itself: half a megabyte each time until the collector comes by
            gc.collect()

    def versions(self) -> dict[str, tuple[int, ...]]:
        """Return the versions of each model that this process holds in memory now, oldest first."""
        held = sorted(self._loaded)
        return {model: tuple(version for own, version in held if own == model) for model, _ in held}

    def loading(self) -> list[tuple[str, int, float]]:
        """Return which versions this process loads or tries now: model, version, for how many seconds."""
        now = self._monotonic()
        return [(model, version, now - since) for (model, version), since in list(self._loading.items())]

    def real_rows(self, model: str) -> RealRows:
        """Return where rows are to try a version with."""
        table = table_of(self._settings, self._settings.models[model])
        return RealRows(table, partial(self._registry.stored_rows, model))

    def is_proved(self, model: str, version: int) -> bool:
        """Tell whether a version that this process holds has answered rows."""
        return self._loaded[model, version].record.is_proved

    def _start_model(self, model: str, of_model: ModelSettings) -> None:
        found = find_versions(self._settings.path(of_model.path))
        pointer = self._registry.pointer(model)
        active = pointer.active_version
        candidates = wanted_versions(found, of_model.versions)
        if of_model.versions == "latest":
            # one that a rollback took out of service is not tried again
            candidates = [one for one in candidates if one not in pointer.held_versions]
        labels = pointer.labels
        candidates = [one for one in candidates if one != labels.canary]
        for first in (labels.stable, active):
            if first in found and not is_ruled_out(first, of_model):
                candidates = [first, *(one for one in candidates if one != first)]
        good = self._load_good(model, of_model, candidates, trusted={labels.stable, active})
        replaceable = active is None or is_ruled_out(active, of_model)
        if good and (replaceable or good[0] in (labels.stable, active) or self.is_proved(model, good[0])):
            activated = self._registry.activate(model, good[0], force=is_ruled_out(active, of_model))
            log.info("model.ready", model=model, version=good[0], activated=activated)
        for version in found.keys() & {active, *labels.versions.values()} - set(good):
            if not is_ruled_out(version, of_model):
                self._try(model, of_model, version)

    def _load_good(
        self, model: str, of_model: ModelSettings, candidates: list[int], *, trusted: Collection[int | None]
    ) -> list[int]:
        """Load versions in this order; return the good ones, those first that are trusted or have answered rows.

        Of the latest, only the first such version is loaded, or else the newest good one.
        """
        sure: list[int] = []
        unsure: list[int] = []
        for version in candidates:
            if self._try(model, of_model, version) is None:
                continue
            (sure if version in trusted or self.is_proved(model, version) else unsure).append(version)
            if of_model.versions == "latest" and sure:
                break
        good = [*sure, *unsure]
        if of_model.versions == "latest":
            for version in good[1:]:
                del self._loaded[model, version]
        return good[:1] if of_model.versions == "latest" else good

    def _try(self, model: str, of_model: ModelSettings, version: int) -> LoadedModel | None:
        try:
            return self._load_once(model, of_model, version)
        except ModelUnavailable as error:
            log.error("model.version_refused", model=model, version=version, error=error.message)  # noqa: TRY400
            return None

    def _load_once(self, model: str, of_model: ModelSettings, version: int) -> LoadedModel:
        with self._lock:
            return self._loaded.get((model, version)) or self._load(model, of_model, version)

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
        if pointer.active_version is not None:  # one that is awaited is looked for by every request
            self.learn(model, pointer)
        return pointer

    def _load(self, model: str, of_model: ModelSettings, version: int) -> LoadedModel:
        key = (model, version)
        failed = self._failed.get(key)
        if failed is not None and self._monotonic() < failed[0]:
            raise ModelUnavailable(failed[1])
        known = self._registry.versions(model).get(version)
        began = self._monotonic()
        result = self._try_folder(model, of_model, version, known)
        if isinstance(result, LoadedModel):
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
            # never over a good record: this process's trouble (a lost mount) need not be the model's
            self._registry.put(model, result)
        raise ModelUnavailable(message)

    def _share_proof(self, model: str, loaded: LoadedModel) -> None:
        """Count a version as proved if another worker, with rows that this one lacks, has proved it meanwhile."""
        own = loaded.record
        if not own.is_proved:
            now = self._registry.versions(model).get(own.version)
            if now is not None and now.is_proved and (now.fingerprint, now.contract) == (own.fingerprint, own.contract):
                loaded.record = replace(own, unproven=None)

    def _try_folder(
        self, model: str, of_model: ModelSettings, version: int, known: VersionRecord | None
    ) -> LoadedModel | VersionRecord:
        path = self._settings.path(of_model.path)
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
            folder = find_versions(path).get(version)
        except BadInput as error:
            return VersionRecord.refused(version, error.message, inspected_at=time.time())
        if folder is None:
            return VersionRecord.refused(version, f"it is not in {path}", inspected_at=time.time())
        marks = self._registry.load_marks(model)
        if cut_off := marks.cut_off(version):
            log.warning("model.load_was_cut_off", model=model, version=version, times=cut_off)
            reason = self._why_it_cuts_off(model, version, cut_off)
            if reason is not None:
                return VersionRecord.refused(version, reason, inspected_at=time.time())
        limits, what = LoadLimits.of(workers, folder), f"version {version} of model {model!r}"
        with marks.of_load(version), self._told(model, version), bounded_time(limits, what):
            return try_version(
                model, path, version, folder, options=options,
                rows=self.real_rows(model), known=known, warm_up_rows=sizes, limits=limits,
            )  # fmt: skip

    def _why_it_cuts_off(self, model: str, version: int, times: int) -> str | None:
        """Return why a version is not loaded that has cut workers off so often; None: it is tried once more."""
        if times >= MOST_CUT_OFF:
            return (
                f"the last {times} workers that loaded it here ended meanwhile, and their logs say how: put it right, "
                f"then `forecache models reload {model}`"
            )
        try:
            with self._told(model, version):
                self._try_apart(self._settings, model, version)
        except ModelError as error:
            return error.message
        return None

    @contextmanager
    def _told(self, model: str, version: int) -> Iterator[None]:
        """Have `loading` tell of a version while the block runs."""
        self._loading[model, version] = self._monotonic()
        try:
            yield
        finally:
            del self._loading[model, version]
