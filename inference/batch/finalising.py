"""From the last chunk to the flipped pointer: count in the store, check the gates, publish, `_SUCCESS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.batch.gates import MAX_EXAMPLES, BadRows, Gate, RunFacts, check_gates, failures, merge_bad_rows
from inference.batch.ledger import Ledger
from inference.batch.plan import SourceFile
from inference.batch.records import RunRecord, RunState, RunView
from inference.batch.sinks.parquet import sweep_temporary_files, write_success
from inference.batch.sources import IdCount, count_distinct_ids, open_source
from inference.errors import BadInput, Conflict, NotFound
from inference.keys import Keys
from inference.logs import get_logger
from inference.settings import Settings
from inference.store import GenerationState, Manifest, Table

log = get_logger(__name__)


@dataclass(frozen=True)
class Finalising:
    """Takes a run whose chunks are all done to its end."""

    settings: Settings
    ledger: Ledger
    keys: Keys
    predictions: Callable[[str], Table]

    def finalise(self, run: RunRecord) -> None:
        """Publish a run in state publishing, or fail it when a gate says so.

        May run twice: it goes on where a killed process stopped.
        """
        table = self.predictions(run.model)
        number = run.generation or 0
        state = table.state(number)
        if state in (GenerationState.CURRENT, GenerationState.PREVIOUS):
            self._close(run)  # published by a process that was killed before it could say so
            return
        manifest = table.manifest(number)
        if state is not GenerationState.LOADING or manifest is None:
            self._fail(run, "its predictions are gone from Redis: start a new run")
            return
        try:
            verdict = failures(self._check(run, table, manifest))
            if verdict and not run.forced:
                self._fail(run, f"not published: {verdict}")
                return
            pointer = table.publish(number, run_key=self.keys.run(run.run_id), run_state=RunState.PUBLISHING.value)
        except (BadInput, Conflict, NotFound) as error:
            self._fail(run, f"not published: {error.message}")
            return
        log.info("run.published", run_id=run.run_id, generation=pointer.current, previous=pointer.previous)
        self._close(run)

    def _check(self, run: RunRecord, table: Table, manifest: Manifest) -> Sequence[Gate]:
        gates = check_gates(self._facts(run, table, manifest))
        self.ledger.note(run, gates=json.dumps([gate.to_json() for gate in gates]))
        return gates

    def _facts(self, run: RunRecord, table: Table, manifest: Manifest) -> RunFacts:
        results = self.ledger.results(run.run_id).values()
        bad = merge_bad_rows([BadRows.from_json(entry) for result in results for entry in result["bad_rows"]])
        pointer = table.pointer()
        current = table.manifest(pointer.current) if pointer.current is not None else None
        facts = RunFacts(
            rows=run.rows_total or 0,
            stored=table.count(manifest),
            quarantined=sum(result["quarantined"] for result in results),
            non_finite=sum(result["non_finite"] for result in results),
            bad_rows=bad,
            current=table.count(current) if current else None,
            min_size_ratio=self.settings.models[run.model].batch.min_size_ratio,
            model_version=manifest.model_version,
            held=manifest.model_version in pointer.held_versions,
        )
        if not facts.needs_recount:
            return facts
        counted = self._recount(run)
        return RunFacts(**{**vars(facts), "distinct": counted.distinct, "duplicates": counted.duplicates})

    def _recount(self, run: RunRecord) -> IdCount:
        files: tuple[SourceFile, ...] = open_source(run.source).files
        return count_distinct_ids(files, run.fingerprint["entity_column"], examples=MAX_EXAMPLES)

    def _close(self, run: RunRecord) -> None:
        """Say that the run is published. What serves is decided already, so a full disk cannot undo it."""
        error = {}
        if run.parquet_folder:
            try:
                facts = RunView.of(self.ledger.load(run.run_id), now=self.ledger.now()).to_json()
                sweep_temporary_files(Path(run.parquet_folder))
                write_success(run.parquet_folder, {**facts, "state": RunState.PUBLISHED.value})
            except OSError as problem:
                log.exception("run.success_file_not_written", run_id=run.run_id)
                error = {"error": f"published, but the Parquet folder has no _SUCCESS: {problem}"}
        self.ledger.move(run, RunState.PUBLISHED, expected=[RunState.PUBLISHING], **error)

    def _fail(self, run: RunRecord, error: str) -> None:
        log.warning("run.failed", run_id=run.run_id, error=error)
        self.ledger.move(run, RunState.FAILED, expected=[RunState.PUBLISHING], error=error)
