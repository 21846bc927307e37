"""Forgets entities on request: puts one on its model's list, and removes what the deployment holds of it.

The list comes first. Whoever writes something of an entity looks at the list afterwards, or is swept before its rows
serve; so what is removed here stays removed, whatever goes on meanwhile. Everything may run twice, also after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow.compute as pc
from pydantic import FiniteFloat

from inference.batch.delta import Deltas
from inference.batch.erasing import IsDoomed, erase_from_success, erase_rows
from inference.batch.ledger import Ledger
from inference.batch.mentions import Mentions, mention_remover
from inference.batch.paths import parquet_folder_of, quarantine_folder_of_id
from inference.batch.records import RunRecord
from inference.entities import check_entity_id
from inference.errors import BadInput, Conflict, NotFound, SettingsError, UnknownFormat
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.models import ModelRegistry
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.serving.answer_sample import AnswerSample
from inference.serving.jobs import JobIds
from inference.settings import Settings
from inference.store import ForgottenEntity, ForgottenIds, ForgottenList, Table, stored_id
from inference.stored_data import record_from_json
from inference.streams.progress import StreamProgress

log = get_logger(__name__)

_KEEP_REPORT_S = 86400
#: how long it waits until the reconciler has done a step, before it changes files of runs
_WAIT_S = 5.0
_KINDS = {TableKind.PREDICTIONS: "predictions", TableKind.FEATURES: "features"}
#: errors of one item, which keep no other item from being removed
_OF_ONE_ITEM = (OSError, BadInput, NotFound, Conflict, UnknownFormat)

#: what is not removed, and why that names nobody or does not last
STAYS = (
    "access log, hit counters, filters of active sets: keyed or one-way hashes, until their days are over",
    "messages that wait in queues: who takes one answers `forgotten`; results of such messages, for 10 minutes",
    "Parquet parts of runs whose records are gone: 30 days after their end, or before the newest 200",
    "digests of a failed run's vectors, until the next run; digests of requests with an Idempotency-Key, for an hour",
    "lines of logs, Flower's list of recent tasks, your own tables and streams, backups of Redis, copies of Parquet",
)


@dataclass(frozen=True)
class ForgetItem:
    """One place that was looked at. `removed`: rows, entries or values. `left`: why something may be left there."""

    place: str
    removed: int = 0
    left: str = ""


@dataclass(frozen=True)
class ForgetReport:
    """What was removed of an entity, at `made_at`. `at`: when it was put on the list. `done`: nothing was left.

    Instants in epoch seconds of Redis' clock.
    """

    model: str
    at: FiniteFloat
    until: FiniteFloat | None
    made_at: FiniteFloat
    done: bool
    items: tuple[ForgetItem, ...]
    stays: tuple[str, ...] = STAYS


class Forgetting:
    """Forgets entities of all models. Methods raise StoreUnavailable when Redis does not answer.

    `table` returns a model's table of a kind.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        keys: Keys,
        registry: ModelRegistry,
        table: Callable[[TableKind, str], Table],
    ) -> None:
        self._settings = settings
        self._client = client
        self._keys = keys
        self._registry = registry
        self._table = table
        self._ledger = Ledger(client, keys)
        self._mentions = Mentions(client, keys)
        self._deltas = Deltas(settings, self._ledger, lambda model: table(TableKind.PREDICTIONS, model))

    def add(self, model: str | None, entity_id: str, *, until: float | None = None) -> tuple[str, ForgottenEntity]:
        """Put an entity on the list of a model, and return the model's name and the entry. Removes nothing yet.

        From here on nothing new is stored of it. `until`: epoch seconds; None: until it is lifted.

        Raises:
            UnknownModel: the settings do not name the model.
            BadEntityId: the id is not legal.
            BadInput: `until` is not in the future.
        """
        name, _ = self._settings.model(model)
        check_entity_id(entity_id)
        if until is not None and until <= self._client.now():
            raise BadInput("until is not in the future: the entity would not be forgotten at all", field="until")
        return name, self._list(name).add(entity_id, until=until)

    def forget(self, model: str | None, entity_id: str, *, until: float | None = None) -> ForgetReport:
        """Put an entity on the list of a model, and remove what the deployment holds of it. May run twice.

        Raises: see `add`.
        """
        name, _ = self.add(model, entity_id, until=until)
        return self.remove(name, entity_id)

    def remove(self, model: str, entity_id: str) -> ForgetReport:
        """Remove what the deployment holds of an entity on the list, and keep the report for a day. May run twice.

        Raises:
            UnknownModel: the settings do not name the model.
            NotFound: the entity is not on the list.
        """
        name, _ = self._settings.model(model)
        entry = self._list(name).entry(entity_id)
        if entry is None or not entry.holds(self._client.now()):
            raise NotFound("the entity is not on the list of forgotten ones", field="entity_id")
        items = (*self._in_redis(name, entity_id), *self._in_files(name, entity_id))
        done = not any(item.left for item in items)
        report = ForgetReport(name, entry.at, entry.until, self._client.now(), done, items)
        if done:
            self._list(name).note_done(entry)
        self._client.set(self._keys.forgotten_report(name, entry.digest), json.dumps(asdict(report)), ex=_KEEP_REPORT_S)
        log.info("entity.forgotten", model=name, removed=sum(item.removed for item in items), done=done)
        return report

    def lift(self, model: str | None, entity_id: str) -> bool:
        """Take an entity off the list; return whether it was on it. What was removed comes with the next run.

        Raises: see `add`.
        """
        name, _ = self._settings.model(model)
        return self._list(name).lift(check_entity_id(entity_id))

    def listed(self, model: str | None) -> ForgottenIds:
        """Return the list of a model.

        Raises:
            UnknownModel: the settings do not name the model.
        """
        return self._list(self._settings.model(model)[0]).all()

    def find(self, model: str | None, entity_id: str) -> tuple[ForgottenEntity | None, ForgetReport | None]:
        """Return an entity's entry, if it is on the list now, and the last report of the last day.

        Raises: see `add`.
        """
        name, _ = self._settings.model(model)
        entry = self._list(name).entry(check_entity_id(entity_id))
        if entry is None or not entry.holds(self._client.now()):
            return None, None
        text: bytes | None = self._client.get(self._keys.forgotten_report(name, entry.digest))  # type: ignore[assignment]
        return entry, None if text is None else record_from_json(ForgetReport, text, "a report of a forgetting")

    def _list(self, model: str) -> ForgottenList:
        return self._table(TableKind.PREDICTIONS, model).forgotten

    # --- Redis ---

    def _in_redis(self, model: str, entity_id: str) -> Iterator[ForgetItem]:
        for kind in (TableKind.FEATURES, TableKind.PREDICTIONS):
            yield from self._in_table(kind, model, entity_id)
        sample = AnswerSample(self._settings, self._client, self._keys)
        yield _item("sample of answers", lambda: sample.forget(model, entity_id))
        for name in self._settings.streams:
            if self._settings.stream_model(name) == self._settings.features_owner(model):
                progress = StreamProgress(self._client, self._keys, name)
                yield _item(f"dead letters of stream {name}", partial(progress.forget, entity_id))
        yield _item("jobs", lambda: JobIds(self._client, self._keys, model).remove(entity_id))
        runs = self._mentions.runs_of(model)
        yield _item("records of runs", lambda: sum(self._mentions.remove(run_id, entity_id) for run_id in runs))

    def _in_table(self, kind: TableKind, model: str, entity_id: str) -> Iterator[ForgetItem]:
        table, name = self._table(kind, model), _KINDS[kind]
        try:
            removed = table.generations.forget(entity_id)
        except UnknownFormat as error:
            yield ForgetItem(f"{name}, generations", left=sentence_of(error))
        else:
            pointer = table.pointer()
            roles = {pointer.current: " (serving)", pointer.previous: " (previous)"}
            for number, had in removed.items():
                yield ForgetItem(f"{name}, generation {number}{roles.get(number, '')}", int(had))
        parts = (
            [table, *(table.part(group) for group in self._groups(model))] if kind is TableKind.FEATURES else [table]
        )
        entries = sum(part.overlay.remove([stored_id(entity_id)]) for part in parts)
        yield ForgetItem(f"{name}, updates" if kind is TableKind.FEATURES else f"{name}, computed on demand", entries)

    def _groups(self, model: str) -> list[str]:
        contracts = [record.contract for record in self._registry.versions(model).values()]
        return list(dict.fromkeys(group.name for contract in contracts for group in contract.table_groups))

    # --- files of runs ---

    def _in_files(self, model: str, entity_id: str) -> Iterator[ForgetItem]:
        # the reconciler plans and publishes under this lock: a delta run must not read files that change
        with self._ledger.lock(model).holding(f"forget an entity of {model}", wait_s=_WAIT_S) as held:
            if not held:
                yield ForgetItem(
                    "files of runs", left="a run of the model is being planned or published: forget it again"
                )
                return
            active = self._active(model)
            for run_id in self._mentions.runs_of(model):
                yield from self._in_files_of(model, run_id, entity_id, active)
            if active is not None:
                yield ForgetItem(
                    f"run {active.run_id}",
                    left="it goes on; it leaves the entity out, but its files may hold rows from before: forget the "
                    "entity again once it is over",
                )

    def _active(self, model: str) -> RunRecord | None:
        run_id = self._ledger.active_run(model)
        with suppress(NotFound):
            return self._ledger.load(run_id) if run_id else None
        return None

    def _in_files_of(self, model: str, run_id: str, entity_id: str, active: RunRecord | None) -> Sequence[ForgetItem]:
        """Remove an entity from the files of a run; only what was removed, or not, is told."""
        if active is not None and active.base_run == run_id:
            left = f"run {active.run_id} carries rows over from it: forget the entity again once it is over"
            return [ForgetItem(f"files of run {run_id}", left=left)]
        folder, problem = self._parquet_folder(run_id)
        items = [ForgetItem(f"Parquet parts of run {run_id}", left=problem)] if problem else []
        is_doomed, vectors = _equal_to(entity_id), [0]

        def parts() -> int:
            erased, vectors[0] = self._deltas.erase(model, run_id, folder, is_doomed, [stored_id(entity_id)])
            return erased.rows

        items.append(_item(f"Parquet parts of run {run_id}", parts))
        items.append(ForgetItem(f"vectors of run {run_id}", vectors[0]))
        if folder is not None:
            unname = partial(erase_from_success, folder, mention_remover(entity_id))
            items.append(_item(f"_SUCCESS of run {run_id}", lambda: int(unname())))
        quarantine = quarantine_folder_of_id(self._settings, model, run_id)
        if quarantine is not None:
            items.append(_item(f"quarantined rows of run {run_id}", lambda: erase_rows(quarantine, is_doomed).rows))
        return [item for item in items if item.removed or item.left]

    def _parquet_folder(self, run_id: str) -> tuple[str | None, str]:
        """Return the folder of a run's Parquet parts, None for none, and why it is not known."""
        try:
            run = self._ledger.load(run_id)
        except NotFound:  # a record lives for 30 days, and its folder is not known without it
            return None, ""
        except UnknownFormat as error:
            return None, sentence_of(error)
        try:
            return parquet_folder_of(self._settings, run), ""
        except SettingsError:
            return None, f"the settings name another folder by now: remove the entity from {run.parquet_folder} by hand"


def _item(place: str, remove: Callable[[], int]) -> ForgetItem:
    """Return the item of one place; an error there is told, and keeps no other place from being looked at."""
    try:
        return ForgetItem(place, remove())
    except _OF_ONE_ITEM as error:
        return ForgetItem(place, left=sentence_of(error))


def _equal_to(entity_id: str) -> IsDoomed:
    return lambda ids: np.asarray(pc.equal(ids, entity_id), np.bool_)
