"""Plans a run: looks at its model and source, cuts the source into chunks, opens its generations.

Footers come in and chunks go out one at a time, so that a long plan takes no memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from inference.batch.active_set import ActiveSet, ActiveSets
from inference.batch.change_feed import ChangeFeeds
from inference.batch.comparison.differences import check_comparable
from inference.batch.delta import Base, Deltas, copied_at
from inference.batch.engines import ChunkEngine
from inference.batch.gates import Gate, entities_gate
from inference.batch.ledger import KEEP_RUNS, Ledger, is_the_runs_fault
from inference.batch.paths import check_source, run_folder, snapshots_folder
from inference.batch.publishing import RunTables
from inference.batch.records import Chunk, Engine, Fingerprint, RunRecord, RunState
from inference.batch.run_folders import remove_folder, sweep_runs
from inference.batch.selection import RowSlice, Selected, Selection, select_rows, unpack_entities
from inference.errors import BadInput, Conflict, SourceError
from inference.failures import sentence_of
from inference.features import Vectoriser, check_key_columns
from inference.features.key_columns import refuse_repeated_ids
from inference.logs import get_logger
from inference.models import Inspect, ModelRegistry, VersionRecord, record_of_version, record_to_serve
from inference.redis.keys import TableKind
from inference.settings import ModelSettings, Settings
from inference.sources import Slice, Source, SourceFile, is_plain, pin_source
from inference.store import GenerationState
from inference.stored_data import json_text_of
from inference.wording import counted

log = get_logger(__name__)

#: files that a difference names
_MAX_NAMED = 5


@dataclass(frozen=True)
class Planner:
    """Plans runs. A source or model that does not fit fails the run before it opens a generation."""

    settings: Settings
    ledger: Ledger
    registry: ModelRegistry
    tables: RunTables
    active_sets: ActiveSets
    inspect: Inspect
    deltas: Deltas
    change_feeds: ChangeFeeds
    engines: Mapping[Engine, ChunkEngine]

    def plan(self, run: RunRecord) -> None:
        """Move a queued run to running, or to failed with one line that says why. May run twice."""
        try:
            self.engines[run.engine].check(run)
            version = self._version_of(run)
            source, fingerprint = self.look_at(run, version)
            self._plan(run, version, source, fingerprint)
        except Exception as error:  # a file, a library or a model may raise anything; the model must not stay blocked
            if not is_the_runs_fault(error):
                raise
            foreseen = isinstance(error, BadInput)
            reason = sentence_of(error) if foreseen else f"it cannot be planned: {sentence_of(error)}"
            log.warning("run.refused", run_id=run.run_id, error=reason, exc_info=not foreseen)
            self.ledger.move(run, RunState.FAILED, expected=[RunState.QUEUED], error=reason)

    def look_at(self, run: RunRecord, version: VersionRecord) -> tuple[Source, Fingerprint]:
        """Return the run's source, checked against its model, and the fingerprint of the plan.

        Raises:
            SourceError: the source cannot be read, lies outside the folders of the settings, or lacks a column that
                the model or the settings name.
        """
        _, model = self.settings.model(run.model)
        vectoriser = Vectoriser(version.contract, version.signature)
        texts = [model.entity_column, *vectoriser.text_columns]
        check_source(self.settings, run.model, run.read_from)
        folder = snapshots_folder(self.settings, run.model, run.run_id)
        source = pin_source(run.read_from, folder, as_text=texts, keep_metadata=run.since is not None)
        check_key_columns(source, model.entity_column, model.event_time_column)
        vectoriser.check_schema(source.schema, run.source)
        return source, _fingerprint(source, model, version)

    def changes(self, run: RunRecord) -> list[str]:
        """Return in words what changed since the run was planned; empty when the run can be resumed."""
        if run.chunks_total is None or run.model_version is None:
            return []
        if run.fingerprint is None:
            return ["its plan is gone"]
        version = self.registry.get(run.model, run.model_version)
        source, fingerprint = self.look_at(run, version)
        changed = [*fingerprint.differences(run.fingerprint), *self.deltas.changes(run)]
        if fingerprint.files == run.fingerprint.files:
            return changed
        return [*file_differences(list(self.ledger.plans.files(run.run_id)), source.files), *changed]

    def _version_of(self, run: RunRecord) -> VersionRecord:
        """Return the version that serves, or the one that a shadow run compares with it.

        Raises:
            ModelError: it cannot be served.
            BadInput: a shadow run would have nothing to compare with.
        """
        if not run.shadow or run.model_version is None:
            return record_to_serve(self.settings, self.registry, run.model, inspect=self.inspect)
        version = record_of_version(self.settings, self.registry, run.model, run.model_version)
        serving, _ = self.tables.predictions(run.model).generations.published()
        if serving is None:
            raise BadInput("no predictions serve that this shadow run could be compared with", field="shadow")
        check_comparable(f"version {version.version}", version.signature.outputs, serving.fields)
        return version

    def _plan(self, run: RunRecord, version: VersionRecord, source: Source, fingerprint: Fingerprint) -> None:
        _, model = self.settings.model(run.model)
        limits = {"rows_per_chunk": model.batch.rows_per_chunk, "bytes_per_chunk": model.batch.bytes_per_chunk}
        pieces, rows, gates = self._rows(run, source, model, limits)
        active = self._active_set(run, model, rows)
        unread = None
        if active:
            pieces = active.mark(source, pieces, model.entity_column)
        else:  # the size of an active set is known once its rows are marked
            vectors, base = self._base(run, version, model, rows)
            if base and source.version:
                told, unread = self.change_feeds.open(run, base, source, fingerprint, version.contract)
                vectors |= told
        if unread:
            pieces = unread.leave_out(source, pieces)
        is_copy = source.path != run.source and is_plain(source.path)
        facts: dict[str, str | int] = {
            "chunks_total": self.ledger.plans.write(run.run_id, gather(pieces, **limits), files=source.files),
            "rows_total": rows,
            "model_version": fingerprint.model_version,
            "fingerprint": json_text_of(Fingerprint, fingerprint),
            "parquet_folder": self._parquet_folder(run, model),
            # a table with its version; of another source, what was requested
            "source": source.version.rpartition(" ")[0] or run.source,
            "snapshot": source.path if is_copy else "",
            "table_version": source.version,
        }
        if gates:
            facts["gates"] = json_text_of(list[Gate], gates)
        if active:
            facts |= self._settle(run, model, active)
            vectors, base = self._base(run, version, model, rows - int(facts["rows_outside"]))
        if unread:
            vectors |= unread.keep(self.ledger)
        self._start(run, version, model, facts | vectors, base)
        self.ledger.plans.forget_entities(run.run_id)
        if source.path != run.source:
            folders = partial(snapshots_folder, self.settings, run.model)
            sweep_runs(folders, remove_folder, self.ledger, self.tables.predictions(run.model), run)

    def _rows(
        self, run: RunRecord, source: Source, model: ModelSettings, limits: dict[str, int]
    ) -> tuple[Iterable[RowSlice], int, list[Gate]]:
        """Return the rows that a run is about, how many they are, and the gate of a list of ids."""
        if not run.is_partial and model.rows != "newest":
            refuse_repeated_ids(source, model.entity_column)
            return cut_row_groups(source.files, **limits), source.rows, []
        selected = self._select(run, source, model, limits)
        gates = []
        if run.entities_asked is not None:
            gates = [entities_gate(run.entities_asked, selected.missing, selected.missing_examples)]
            if not gates[0].passed:
                raise SourceError(f"{source.path}: {gates[0].detail}", field="entities")
        return selected.pieces, selected.rows, gates

    def _base(
        self, run: RunRecord, version: VersionRecord, model: ModelSettings, rows: int
    ) -> tuple[dict[str, str | int], Base | None]:
        """Return what `Deltas.plan` does, or nothing if the run keeps no vectors. `rows`: that it scores."""
        if run.delta or (model.batch.delta and not run.is_partial and not run.shadow):
            return self.deltas.plan(run, version, rows)
        return {}, None

    def _active_set(self, run: RunRecord, model: ModelSettings, rows: int) -> ActiveSet | None:
        """Return the active set of a whole run; None if the settings name none."""
        if run.is_partial or model.batch.entities == "all":
            return None
        serving, _ = self.tables.predictions(run.model).generations.published()
        run_id = None if serving is None else serving.run_id
        return self.active_sets.open(run.model, model, rows=rows, serving=run_id, now=self.ledger.now())

    def _settle(self, run: RunRecord, model: ModelSettings, active: ActiveSet) -> dict[str, str | int]:
        """Check the set that was chosen, keep its run's ids, and return the facts about it for the run's record."""
        active.check()
        if active.known:
            published = self.tables.predictions(run.model).generations.published()
            kept = {manifest.run_id for manifest in published if manifest is not None}
            others = [one.run_id for one in self.ledger.newest(run.model, KEEP_RUNS) if one.run_id not in kept]
            self.active_sets.keep_known(run.run_id, active.known, keep_s=model.batch.keep, others=others)
        log.info("run.entities", run_id=run.run_id, rule=active.rule, outside=active.rows_outside, note=active.text)
        facts: dict[str, str | int] = {"rows_outside": active.rows_outside}
        if active.share is not None:
            facts["entities_share"] = f"{active.share:.6f}"
        return {**facts, "entities_rule": active.rule, "entities_note": active.text}

    def _start(
        self,
        run: RunRecord,
        version: VersionRecord,
        model: ModelSettings,
        facts: dict[str, str | int],
        base: Base | None,
    ) -> None:
        """Open the run's generations, fill them with the rows of `base`, and let workers score the run's chunks."""
        rows, outside = int(facts["rows_total"]), int(facts.get("rows_outside", 0))
        as_of = None if base is None else copied_at(run, version.contract, model.event_time_column)
        opened = self.tables.open(run, version, model.batch, rows=rows, outside=outside, rows_as_of=as_of)
        numbers = {run.field_of(kind): number for kind, number in opened.items()}
        if base is not None and TableKind.PREDICTIONS in opened:
            self.deltas.copy(run, base, opened[TableKind.PREDICTIONS])
        try:
            self.ledger.move(run, RunState.RUNNING, expected=[RunState.QUEUED], **facts, **numbers)
        except Conflict:  # cancelled meanwhile
            self.tables.discard(run.model, opened, GenerationState.CANCELLED)
            raise
        names = ("chunks_total", "rows_total", "model_version", "base_run")
        planned = {name: facts[name] for name in names if name in facts}
        log.info("run.planned", run_id=run.run_id, **planned)

    def _select(self, run: RunRecord, source: Source, model: ModelSettings, limits: dict[str, int]) -> Selected:
        entities = None
        if run.entities_asked is not None:
            packed = self.ledger.plans.entities(run.run_id)
            if packed is None:
                raise BadInput("Redis has forgotten the ids of this partial run: start a new run")
            entities = unpack_entities(packed)
        return select_rows(
            source,
            cut_row_groups(source.files, **limits),
            Selection(entities, run.since),
            entity_column=model.entity_column,
            event_time_column=model.event_time_column,
            newest=model.rows == "newest",
        )

    def _parquet_folder(self, run: RunRecord, model: ModelSettings) -> str:
        pattern = model.batch.parquet_path
        if run.is_partial or run.shadow or not pattern:
            return ""
        return run_folder(self.settings, pattern, model=run.model, run_id=run.run_id, created_at=run.created_at)


def cut_row_groups(files: Sequence[SourceFile], *, rows_per_chunk: int, bytes_per_chunk: int) -> Iterator[RowSlice]:
    """Yield every row once, in order: row groups, and those that are larger than a chunk in equal slices."""
    for index, file in enumerate(files):
        for group, (rows, size) in enumerate(zip(file.row_groups, file.group_bytes, strict=True)):
            count = min(max(-(-rows // rows_per_chunk), -(-size // bytes_per_chunk)), rows)
            for piece in range(count):
                start, end = rows * piece // count, rows * (piece + 1) // count
                yield RowSlice(Slice(index, group, start, end - start), end - start, size // count)


def gather(pieces: Iterable[RowSlice], *, rows_per_chunk: int, bytes_per_chunk: int) -> Iterator[Chunk]:
    """Yield chunks of neighbouring pieces, each as full as the limits allow; a single huge row may pass them."""
    number = rows = size = 0
    gathered: list[Slice] = []
    for piece in pieces:
        if gathered and (rows + piece.rows > rows_per_chunk or size + piece.bytes > bytes_per_chunk):
            yield Chunk(number, tuple(gathered))
            number, rows, size, gathered = number + 1, 0, 0, []
        gathered.append(piece.slice)
        rows, size = rows + piece.rows, size + piece.bytes
    if gathered:
        yield Chunk(number, tuple(gathered))


def files_digest(files: Iterable[SourceFile]) -> str:
    """Return a digest of the files' names and identities."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(json.dumps([file.path, *file.identity]).encode())
    return digest.hexdigest()


def file_differences(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """Return in words which files were added, removed or replaced; the first few by name."""
    old, new = ({file.path: file.identity for file in files} for files in (before, now))
    lost = [f"{path} is gone" for path in old if path not in new]
    added = [f"{path} is new" for path in new if path not in old]
    replaced = [f"{path} was replaced" for path in new if path in old and old[path] != new[path]]
    all_ = lost + added + replaced
    more = len(all_) - _MAX_NAMED
    return all_ if more <= 0 else [*all_[:_MAX_NAMED], f"and {counted(more, 'file')} more"]


def _fingerprint(source: Source, model: ModelSettings, version: VersionRecord) -> Fingerprint:
    return Fingerprint(
        files=files_digest(source.files),
        entity_column=model.entity_column,
        event_time_column=model.event_time_column,
        model_version=version.version,
        contract_hash=version.contract_hash,
        rows_per_chunk=model.batch.rows_per_chunk,
        bytes_per_chunk=model.batch.bytes_per_chunk,
        rows=model.rows,
        entities=model.batch.entities,
    )
