"""From a queued run to a running one: model version, source, chunks, an empty generation."""

from __future__ import annotations

import json
from dataclasses import dataclass

from inference.batch.engine import check_engine
from inference.batch.folders import run_folder
from inference.batch.ledger import Ledger
from inference.batch.outages import is_the_runs_fault
from inference.batch.partial import entities_gate
from inference.batch.partial_request import Selection, unpack_entities
from inference.batch.plan import Fingerprint, cut_row_groups, file_differences, files_digest, gather, plan_chunks
from inference.batch.records import RunRecord, RunState
from inference.batch.selection import Selected, select_rows
from inference.batch.sources import check_source
from inference.batch.tables import RunTables
from inference.errors import BadInput, Conflict, SourceError
from inference.failures import sentence_of
from inference.features import Vectoriser, check_key_columns
from inference.features.key_columns import refuse_repeated_ids
from inference.logs import get_logger
from inference.models import Inspect, ModelRegistry, VersionRecord, record_to_serve
from inference.settings import ModelSettings, Settings
from inference.sources import Source, open_source
from inference.store import GenerationState

log = get_logger(__name__)


@dataclass(frozen=True)
class Preparation:
    """Prepares runs. A source or model that does not fit fails the run before any generation is opened."""

    settings: Settings
    ledger: Ledger
    registry: ModelRegistry
    tables: RunTables
    inspect: Inspect

    def prepare(self, run: RunRecord) -> None:
        """Move a queued run to running, or to failed with the line that says why. May run twice."""
        try:
            check_engine(run.engine)
            version = record_to_serve(self.settings, self.registry, run.model, inspect=self.inspect)
            source, fingerprint = self.look_at(run, version)
            open_ = self._open_partial if run.is_partial else self._open
            open_(run, version, source, fingerprint)
        except Exception as error:  # a file, a library or a model may raise anything; the model must not stay blocked
            if not is_the_runs_fault(error):
                raise
            foreseen = isinstance(error, BadInput)
            reason = sentence_of(error) if foreseen else f"it cannot be planned: {sentence_of(error)}"
            log.warning("run.refused", run_id=run.run_id, error=reason, exc_info=not foreseen)
            self.ledger.move(run, RunState.FAILED, expected=[RunState.QUEUED], error=reason)

    def look_at(self, run: RunRecord, version: VersionRecord) -> tuple[Source, Fingerprint]:
        """Return the run's source, checked against its model, and what the plan will rest on.

        Raises:
            SourceError: the source cannot be read, lies where the settings do not lead to, or lacks what the model or
                the settings name.
        """
        _, model = self.settings.model(run.model)
        vectoriser = Vectoriser(version.contract, version.signature)
        texts = [model.entity_column, *vectoriser.text_columns]
        check_source(self.settings, run.model, run.source)
        source = open_source(run.source, as_text=texts, keep_metadata=run.since is not None)
        check_key_columns(source, model.entity_column, model.event_time_column)
        vectoriser.check_schema(source.schema, run.source)
        return source, _fingerprint(source, model, version)

    def changes(self, run: RunRecord) -> list[str]:
        """Return what changed, in words, since the run was planned; empty when it can be taken up again."""
        if run.model_version is None:
            return []
        version = self.registry.get(run.model, run.model_version)
        source, fingerprint = self.look_at(run, version)
        changed = fingerprint.differences(run.fingerprint)
        if fingerprint.files == run.fingerprint["files"]:
            return changed
        return [*file_differences(list(self.ledger.plans.files(run.run_id)), source.files), *changed]

    def _open(self, run: RunRecord, version: VersionRecord, source: Source, fingerprint: Fingerprint) -> None:
        _, model = self.settings.model(run.model)
        folder = self._parquet_folder(run, model)
        limits = {"rows_per_chunk": model.batch.rows_per_chunk, "bytes_per_chunk": model.batch.bytes_per_chunk}
        if model.rows == "newest":
            selected = self._select(run, source, model, limits)
            planned, rows = gather(selected.pieces, **limits), selected.rows
        else:
            refuse_repeated_ids(source, model.entity_column)
            planned, rows = plan_chunks(source.files, **limits), source.rows
        chunks = self.ledger.plans.write(run.run_id, planned, files=source.files)
        facts = {**_planned(chunks, rows, fingerprint), "parquet_folder": folder}
        self._begin(run, version, model, facts)

    def _begin(self, run: RunRecord, version: VersionRecord, model: ModelSettings, facts: dict[str, str | int]) -> None:
        """Open what the run fills, and let its chunks be scored."""
        opened = self.tables.open(run, version, model.batch, rows=int(facts["rows_total"]))
        numbers = {run.field_of(kind): number for kind, number in opened.items()}
        try:
            self.ledger.move(run, RunState.RUNNING, expected=[RunState.QUEUED], **facts, **numbers)
        except Conflict:  # cancelled meanwhile
            self.tables.discard(run.model, opened, GenerationState.CANCELLED)
            raise
        planned = {name: facts[name] for name in ("chunks_total", "rows_total", "model_version")}
        log.info("run.planned", run_id=run.run_id, **planned)

    def _open_partial(self, run: RunRecord, version: VersionRecord, source: Source, fingerprint: Fingerprint) -> None:
        """Plan the rows that are meant. Their generation is never current: it is moved to the overlay."""
        _, model = self.settings.model(run.model)
        limits = {"rows_per_chunk": model.batch.rows_per_chunk, "bytes_per_chunk": model.batch.bytes_per_chunk}
        selected = self._select(run, source, model, limits)
        chunks = self.ledger.plans.write(run.run_id, gather(selected.pieces, **limits), files=source.files)
        facts = _planned(chunks, selected.rows, fingerprint)
        if run.entities_asked is not None:
            gate = entities_gate(run.entities_asked, selected.missing, selected.missing_examples)
            if not gate.passed:
                raise SourceError(f"{source.path}: {gate.detail}", field="entities")
            facts["gates"] = json.dumps([gate.to_json()])
        self._begin(run, version, model, facts)
        self.ledger.plans.forget_entities(run.run_id)

    def _select(self, run: RunRecord, source: Source, model: ModelSettings, limits: dict[str, int]) -> Selected:
        entities = None
        if run.entities_asked is not None:
            packed = self.ledger.plans.entities(run.run_id)
            if packed is None:
                raise BadInput("the ids that this run was asked for are gone from Redis: start a new run")
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
        if not model.batch.parquet_path:
            return ""
        pattern = model.batch.parquet_path
        return run_folder(self.settings, pattern, model=run.model, run_id=run.run_id, created_at=run.created_at)


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
    )


def _planned(chunks: int, rows: int, fingerprint: Fingerprint) -> dict[str, str | int]:
    return {
        "chunks_total": chunks,
        "rows_total": rows,
        "model_version": fingerprint.model_version,
        "fingerprint": json.dumps(fingerprint.to_json()),
    }
