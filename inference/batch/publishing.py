"""Opens the generations that a run fills, and publishes them when all chunks are done and the gates pass.

A run fills the prediction table, the feature table, both, or neither (only Parquet, which `_SUCCESS` ends).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.batch.comparison.differences import RunDiff
from inference.batch.delta import Deltas
from inference.batch.erasing import erase_rows
from inference.batch.gates import (
    MAX_EXAMPLES,
    NO_DECISIONS,
    BadRows,
    Gate,
    RunFacts,
    check_gates,
    check_partial_gates,
    failed_gates,
    measure_drift,
    merge_bad_rows,
)
from inference.batch.ledger import Ledger, is_the_runs_fault
from inference.batch.paths import check_source, parquet_folder_of, quarantine_folder_of
from inference.batch.records import RunRecord, RunState, RunView
from inference.batch.sinks import sweep_temporary_files, write_success
from inference.errors import BadInput, Conflict, NotFound
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.models import VersionRecord
from inference.redis.keys import Keys, TableKind
from inference.settings import BatchSettings, Settings
from inference.sources import IdCount, count_distinct_ids, open_source
from inference.storage import is_uri
from inference.store import GenerationState, Manifest, Pointer, Table, stored_id
from inference.stored_data import json_text_of, reading

log = get_logger(__name__)

#: reasons for left-out rows that the run's record keeps
_MAX_REASONS = 20
#: the first of these that a run fills decides: its pointer says whether the run is published
KINDS = (TableKind.PREDICTIONS, TableKind.FEATURES)
#: features are the same for every model version
FEATURES_VERSION = 0
_PUBLISHED = (GenerationState.CURRENT, GenerationState.PREVIOUS)


@dataclass(frozen=True)
class StagedGeneration:
    """A run's generation in one table. `manifest`, `state`: None when Redis has none."""

    kind: TableKind
    table: Table
    manifest: Manifest | None
    state: GenerationState | None


@dataclass(frozen=True)
class RunTables:
    """Opens, finds, publishes and discards the generations of runs. `table` returns a model's table of a kind."""

    table: Callable[[TableKind, str], Table]

    def predictions(self, model: str) -> Table:
        """Return a model's prediction table."""
        return self.table(TableKind.PREDICTIONS, model)

    def open(
        self,
        run: RunRecord,
        version: VersionRecord,
        batch: BatchSettings,
        *,
        rows: int,
        outside: int = 0,
        rows_as_of: float | None = None,
    ) -> dict[TableKind, int]:
        """Open an empty generation in each table that the settings turn on; return their numbers.

        `outside`: how many of the rows are not scored, so that only their features are stored. `rows_as_of`: of all
        predictions; None if each has its own.
        """
        # a shadow run leaves nothing behind that serves
        features = batch.feature_table and not run.shadow
        wanted = {
            TableKind.PREDICTIONS: (
                batch.prediction_table,
                version.signature.outputs,
                version.version,
                rows - outside,
            ),
            TableKind.FEATURES: (features, version.contract.stored_fields, FEATURES_VERSION, rows),
        }
        opened = {}
        for kind, (is_on, fields, model_version, expected) in wanted.items():
            if is_on:
                table = self.table(kind, run.model)
                # a later run can carry rows over only between equal numbers of buckets
                like = table.generations.published()[0] if kind is TableKind.PREDICTIONS else None
                manifest = table.generations.begin(
                    fields,
                    rows_expected=expected,
                    model_version=model_version,
                    contract_hash=version.contract_hash,
                    keep_s=batch.keep,
                    run_id=run.run_id,
                    like=like,
                    rows_as_of=rows_as_of if kind is TableKind.PREDICTIONS else None,
                )
                opened[kind] = manifest.number
        return opened

    def of(self, run: RunRecord) -> list[StagedGeneration]:
        """Return a run's generations, the deciding one first; none for a run that writes only Parquet."""
        staged = []
        for kind in KINDS:
            number = run.generation_of(kind)
            if number is not None:
                table = self.table(kind, run.model)
                staged.append(
                    StagedGeneration(kind, table, table.generations.manifest(number), table.generations.state(number))
                )
        return staged

    def publish(self, run: RunRecord, *, run_key: str, run_state: str) -> None:
        """Make the run's generations current. May run twice: it goes on where a killed process stopped.

        The first one decides, and only while the run is in `run_state`; the others follow it.

        Raises:
            NotFound: a generation does not exist (any more).
            Conflict: the run is in another state, a generation was discarded, or the generation whose rows the run
                carries over serves no more.
        """
        for position, staged in enumerate(self.of(run)):
            if staged.state not in _PUBLISHED:
                number, generations = run.generation_of(staged.kind) or 0, staged.table.generations
                if position:
                    generations.publish(number)
                else:
                    generations.publish(number, run_key=run_key, run_state=run_state, instead_of=run.base_generation)

    def move_to_overlay(self, run: RunRecord, *, keep_s: float) -> None:
        """Serve a partial run's rows beside the current generation. May run twice, like `publish`.

        Raises:
            NotFound: a generation does not exist (any more).
            Conflict: a generation was discarded.
        """
        for staged in self.of(run):
            staged.table.generations.move_to_overlay(run.generation_of(staged.kind) or 0, keep_s=keep_s)

    def is_published(self, run: RunRecord) -> bool:
        """Return whether the deciding generation serves, or did; for a partial run, whether it moved to the overlay."""
        staged = self.of(run)
        ends = (GenerationState.COLLECTING,) if run.is_partial else _PUBLISHED
        return bool(staged) and staged[0].state in ends

    def are_loading(self, run: RunRecord) -> bool:
        """Return whether all generations of the run still exist and are unpublished."""
        return all(one.manifest and one.state is GenerationState.LOADING for one in self.of(run))

    def discard(self, model: str, generations: Mapping[TableKind, int], state: GenerationState) -> None:
        """Give up generations, which are removed soon after.

        Raises:
            Conflict: a generation is published.
        """
        for kind, number in generations.items():
            self.table(kind, model).generations.discard(number, state)

    def unpublished(self, model: str) -> Iterator[tuple[TableKind, Manifest]]:
        """Yield the generations of a model that runs opened and have not published."""
        for kind in KINDS:
            table = self.table(kind, model)
            for manifest in table.generations.all():
                if manifest.run_id and table.generations.state(manifest.number) is GenerationState.LOADING:
                    yield kind, manifest

    def collect(self, model: str) -> None:
        """Remove the rows of generations that no reader needs any more."""
        for kind in KINDS:
            table = self.table(kind, model)
            for number in table.generations.collectable():
                table.generations.collect(number)

    def roll_back(self, model: str, generation: int | None) -> Pointer:
        """Serve the previous predictions again; return their new pointer.

        If the same run had published features too, the previous features serve again as well.
        `generation`: the generation of predictions to go back from; None means the current one.

        Raises:
            Conflict: there is nothing to go back to, or another generation serves (by now).
        """
        predictions, features = (self.table(kind, model) for kind in KINDS)
        current = predictions.pointer().current
        if current is None:
            raise Conflict(f"model {model!r} has no published generation", field="model")
        left = predictions.generations.manifest(current if generation is None else generation)
        pointer = predictions.generations.rollback(current if generation is None else generation)
        serving = features.pointer()
        latest = None if serving.current is None else features.generations.manifest(serving.current)
        is_of_both = (
            latest is not None and left is not None and latest.run_id is not None and latest.run_id == left.run_id
        )
        if is_of_both and serving.current is not None and serving.previous is not None:
            features.generations.rollback(serving.current)
        return pointer


@dataclass(frozen=True)
class Publisher:
    """Publishes runs, or fails them when a gate fails. Calls `give_way` between the parts of long work."""

    settings: Settings
    ledger: Ledger
    keys: Keys
    tables: RunTables
    deltas: Deltas
    #: compares a run with what serves, and keeps the result
    compare: Callable[[RunRecord], RunDiff]
    give_way: Callable[[], None] = lambda: None

    def publish(self, run: RunRecord) -> None:
        """Publish a run in state publishing, hold it, or fail it when a gate fails. A shadow run only ends.

        May run twice: it goes on where a killed process stopped.
        """
        try:
            is_published = self.tables.is_published(run)  # by a process that died before it wrote so into the record
            if not is_published and not self.tables.are_loading(run):
                self._fail(run, "its predictions are gone from Redis: start a new run")
                return
            if not is_published:
                self._settle(run)
            verdict = "" if is_published else failed_gates(self._check(run))
            if run.shadow:
                self.ledger.move(run, RunState.COMPARED, expected=[RunState.PUBLISHING], spent="1")
                log.info("run.compared", run_id=run.run_id, model_version=run.model_version)
                return
            if verdict and not run.forced:
                self._fail(run, f"not published: {verdict}")
                return
            if run.waits and not is_published:
                self._replace_held(run)
                self.ledger.move(run, RunState.HELD, expected=[RunState.PUBLISHING])
                log.info("run.held", run_id=run.run_id, generation=run.generation)
                return
            self._publish(run)
        except (BadInput, Conflict, NotFound) as error:
            self._fail(run, f"not {'compared' if run.shadow else 'published'}: {error.message}")
        except Exception as error:  # a file system or a driver may raise anything; the model must not stay blocked
            if not is_the_runs_fault(error):
                raise
            log.exception("run.not_finalised", run_id=run.run_id)
            self._end(run, sentence_of(error))
        else:
            log.info("run.published", run_id=run.run_id, generation=None if run.is_partial else run.generation)

    def _settle(self, run: RunRecord) -> None:
        """Remove the rows that must not serve. May run twice."""
        if run.vector_key:
            self.deltas.settle(run)
        self._leave_out_forgotten(run)

    def _leave_out_forgotten(self, run: RunRecord) -> None:
        """Remove the rows of entities that were forgotten since the run was requested. May run twice.

        A worker that began a chunk before that may have written them after they were removed.
        """
        forgotten = self.tables.predictions(run.model).forgotten.all()
        if not forgotten or not forgotten.added_since(run.created_at):
            return
        gone = {
            stored
            for one in self.tables.of(run)
            if one.manifest is not None
            for stored in one.table.generations.sweep(one.manifest, forgotten, give_way=self.give_way)
        }
        parts = parquet_folder_of(self.settings, run)
        erased, _ = self.deltas.erase(run.model, run.run_id, parts, forgotten.mask, gone)
        erase_rows(quarantine_folder_of(self.settings, run), forgotten.mask, give_way=self.give_way)
        log.info("run.forgotten_left_out", run_id=run.run_id, entities=len(gone | set(map(stored_id, erased.ids))))

    def _end(self, run: RunRecord, error: str) -> None:
        """End a run with an error; a run that serves already is published all the same."""
        if self.tables.is_published(run):
            text = f"published, but what follows failed: {error}"
            self.ledger.move(run, RunState.PUBLISHED, expected=[RunState.PUBLISHING], error=text)
        else:
            self._fail(run, f"not published: {error}")

    def _publish(self, run: RunRecord) -> None:
        if run.is_partial:
            self.tables.move_to_overlay(run, keep_s=self.settings.models[run.model].batch.keep)
            self._close(run)
            return
        self.tables.publish(run, run_key=self.keys.run(run.run_id), run_state=RunState.PUBLISHING.value)
        self._replace_held(run)
        if run.forced and run.model_version is not None:
            # a forced publish of a held version ends its hold
            self.tables.predictions(run.model).versions.activate(run.model_version, force=True)
        self._close(run)

    def _replace_held(self, run: RunRecord) -> None:
        """Give up the run that waits for its publication: it is older than this one, and must not replace it later."""
        self.ledger.end_held(
            run.model, lambda held: None if held.run_id == run.run_id else f"run {run.run_id} took its place"
        )

    def _check(self, run: RunRecord) -> Sequence[Gate]:
        self.ledger.add_up_histogram(run.run_id)
        facts = self._facts(run)
        if run.is_partial:
            planned = [gate for gate in run.gates if gate.name == "entities"]
            serving_version = self.tables.predictions(run.model).pointer().active_version
            gates = (*planned, *check_partial_gates(facts, serving_version))
        else:
            gates = check_gates(facts)
        reasons = facts.bad_rows[:_MAX_REASONS]
        self.ledger.note(
            run,
            gates=json_text_of(tuple[Gate, ...], gates),
            bad_rows=json_text_of(tuple[BadRows, ...], reasons),
        )
        return gates

    def _facts(self, run: RunRecord) -> RunFacts:
        results = self.ledger.results(run.run_id).values()
        staged = self.tables.of(run)
        stored = [one.table.generations.count(one.manifest) for one in staged if one.manifest]
        # the rows of a partial run say nothing against all that serve now
        current = staged[0].table.generations.published()[0] if staged and not run.is_partial else None
        before = self._run_of(current)
        held = self.tables.predictions(run.model).pointer().held_versions
        limits = self.settings.models[run.model].batch
        facts = RunFacts(
            rows=run.rows_total or 0,
            stored=stored[0] if stored else sum(_reported(result) for result in results),
            counted=bool(stored),
            features=stored[1] if len(stored) > 1 else None,
            quarantined=sum(result["quarantined"] for result in results),
            non_finite=sum(result["non_finite"] for result in results),
            outside=sum(result.get("outside", 0) for result in results),
            forgotten=sum(result.get("forgotten", 0) for result in results),
            forgotten_since=self.tables.predictions(run.model).forgotten.all().added_since(run.created_at),
            rule=run.entities_rule,
            current_rule=before.entities_rule if before else run.entities_rule,
            current_outside=before.rows_outside if before else 0,
            bad_rows=bad_rows_of(results),
            current=staged[0].table.generations.count(current) if current else None,
            min_size_ratio=limits.min_size_ratio,
            max_quarantined_fraction=limits.max_quarantined_fraction,
            drift=self._drift(run, current),
            max_drift=limits.max_drift,
            model_version=run.model_version or 0,
            held=run.model_version in held,
            max_flips=None if run.is_partial else limits.max_flips,
            flips=self._flips(run, current),
        )
        # a plan of some rows, or of the newest ones, has each entity once
        planned = run.fingerprint
        if run.is_partial or planned is None or planned.rows == "newest" or not facts.needs_recount:
            return facts
        counted = self._recount(run, planned.entity_column)
        return replace(facts, distinct=counted.distinct, duplicates=counted.duplicates)

    def _run_of(self, manifest: Manifest | None) -> RunRecord | None:
        """Return the run that wrote a generation, or None if nobody knows it any more."""
        try:
            return self.ledger.load(manifest.run_id) if manifest and manifest.run_id else None
        except NotFound:
            return None

    def _drift(self, run: RunRecord, current: Manifest | None) -> dict[str, float]:
        if current is None or current.run_id is None:
            return {}
        return measure_drift(self.ledger.histogram(current.run_id), self.ledger.histogram(run.run_id))

    def _flips(self, run: RunRecord, current: Manifest | None) -> Mapping[str, float] | str:
        """Compare a run with what serves if somebody will look at it; return the share of flips of each output.

        A text says why nothing could be compared, which ends a shadow run.
        """
        wanted = run.shadow or run.waits or self.settings.models[run.model].batch.max_flips is not None
        if run.is_partial or not wanted or (current is None and not run.shadow):
            return {}
        try:
            diff = self.compare(run)
        except Exception as error:  # a disk or a file system may raise anything; people may yet publish the run
            if run.shadow or not (isinstance(error, Conflict | NotFound) or is_the_runs_fault(error)):
                raise
            log.warning("run.not_compared", run_id=run.run_id, error=sentence_of(error))
            return sentence_of(error)
        return {one.name: one.flips.share for one in diff.outputs if one.flips is not None} or NO_DECISIONS

    def _recount(self, run: RunRecord, column: str) -> IdCount:
        check_source(self.settings, run.model, run.read_from)
        files = open_source(run.read_from, as_text=[column]).files
        return count_distinct_ids(files, column, examples=MAX_EXAMPLES, give_way=self.give_way)

    def _close(self, run: RunRecord) -> None:
        """Write `_SUCCESS` and mark the run as published.

        The tables serve the run already, so a full disk cannot undo that; a run that fills no table fails then.
        """
        error = {}
        if run.parquet_folder:
            now = self.ledger.now()
            done = replace(self.ledger.load(run.run_id), state=RunState.PUBLISHED, finished_at=now)
            try:
                write_success(parquet_folder_of(self.settings, run) or "", RunView.of(done, now=now).to_json())
            except Exception as problem:  # each kind of storage raises other errors
                if not self.tables.of(run):
                    raise
                log.exception("run.success_file_not_written", run_id=run.run_id)
                error = {"error": f"published, but the Parquet folder has no _SUCCESS: {sentence_of(problem)}"}
        sweep(self.settings, run)
        if run.vector_key:
            self.deltas.sweep(run)
        self.ledger.move(run, RunState.PUBLISHED, expected=[RunState.PUBLISHING], **error)

    def _fail(self, run: RunRecord, error: str) -> None:
        log.warning("run.failed", run_id=run.run_id, error=error)
        self.ledger.move(run, RunState.FAILED, expected=[RunState.PUBLISHING], error=error)


def _reported(result: Mapping[str, Any]) -> int:
    on_purpose = result.get("outside", 0) + result.get("forgotten", 0)
    return int(result["rows"] - on_purpose - result["quarantined"] - result["non_finite"])


def bad_rows_of(results: Iterable[Mapping[str, Any]]) -> tuple[BadRows, ...]:
    """Return from the results of chunks why rows were left out.

    Raises:
        Unreadable: they are no results of chunks.
    """
    with reading("the results of a run"):
        found = [BadRows(**{**bad, "examples": tuple(bad["examples"])}) for one in results for bad in one["bad_rows"]]
        return merge_bad_rows(found)


def sweep(settings: Settings, run: RunRecord) -> None:
    """Remove the temporary files of killed workers from a run's folders on this machine, where permissions allow it."""
    for find in (parquet_folder_of, quarantine_folder_of):
        try:
            folder = find(settings, run)
            if folder and not is_uri(folder):
                sweep_temporary_files(Path(folder))
        except (OSError, BadInput) as error:  # leftovers do no harm
            log.warning("run.not_swept", run_id=run.run_id, error=sentence_of(error))
