"""From the last chunk to the flipped pointer: count in the store, check the gates, publish, `_SUCCESS`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.batch.drift import drift
from inference.batch.folders import parts_of, quarantine_of
from inference.batch.gates import MAX_EXAMPLES, BadRows, Gate, RunFacts, check_gates, failures, merge_bad_rows
from inference.batch.ledger import Ledger
from inference.batch.outages import is_the_runs_fault
from inference.batch.partial import partial_gates
from inference.batch.records import RunRecord, RunState, RunView
from inference.batch.sinks.parquet import sweep_temporary_files, write_success
from inference.batch.sources import check_source
from inference.batch.tables import RunTables, StagedGeneration
from inference.errors import BadInput, Conflict, NotFound
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.redis.keys import Keys
from inference.settings import Settings
from inference.sources import IdCount, count_distinct_ids, open_source
from inference.storage import is_uri
from inference.store import Manifest
from inference.stored_data import reading

log = get_logger(__name__)

#: reasons for rows left out that the run's record keeps
_MAX_REASONS = 20


@dataclass(frozen=True)
class Finalising:
    """Takes a run whose chunks are all done to its end."""

    settings: Settings
    ledger: Ledger
    keys: Keys
    tables: RunTables

    def finalise(self, run: RunRecord) -> None:
        """Publish a run in state publishing, or fail it when a gate says so.

        May run twice: it goes on where a killed process stopped.
        """
        try:
            is_published = self.tables.is_published(run)  # by a process that was killed before it could say so
            if not is_published and not self.tables.are_loading(run):
                self._fail(run, "its predictions are gone from Redis: start a new run")
                return
            verdict = "" if is_published else failures(self._check(run))
            if verdict and not run.forced:
                self._fail(run, f"not published: {verdict}")
                return
            self._publish(run)
        except (BadInput, Conflict, NotFound) as error:
            self._fail(run, f"not published: {error.message}")
        except Exception as error:  # a file system or a driver may raise anything; the model must not stay blocked
            if not is_the_runs_fault(error):
                raise
            log.exception("run.not_finalised", run_id=run.run_id)
            self._end(run, sentence_of(error))
        else:
            log.info("run.published", run_id=run.run_id, generation=None if run.is_partial else run.generation)

    def _end(self, run: RunRecord, error: str) -> None:
        """End a run by a failure: one that serves already is published all the same."""
        if self.tables.is_published(run):
            told = f"published, but what follows failed: {error}"
            self.ledger.move(run, RunState.PUBLISHED, expected=[RunState.PUBLISHING], error=told)
        else:
            self._fail(run, f"not published: {error}")

    def _publish(self, run: RunRecord) -> None:
        if run.is_partial:
            self.tables.move_to_overlay(run, keep_s=self.settings.models[run.model].batch.keep)
            self._close(run)
            return
        self.tables.publish(run, run_key=self.keys.run(run.run_id), run_state=RunState.PUBLISHING.value)
        if run.forced and run.model_version is not None:
            # whoever insists on a held version ends its hold
            self.tables.predictions(run.model).versions.activate(run.model_version, force=True)
        self._close(run)

    def _check(self, run: RunRecord) -> Sequence[Gate]:
        facts = self._facts(run)
        if run.is_partial:
            gates = partial_gates(run, facts, self.tables.predictions(run.model).pointer())
        else:
            gates = check_gates(facts)
        reasons = [bad.to_json() for bad in facts.bad_rows[:_MAX_REASONS]]
        self.ledger.note(run, gates=json.dumps([gate.to_json() for gate in gates]), bad_rows=json.dumps(reasons))
        return gates

    def _facts(self, run: RunRecord) -> RunFacts:
        results = self.ledger.results(run.run_id).values()
        staged = self.tables.of(run)
        stored = [one.table.generations.count(one.manifest) for one in staged if one.manifest]
        # some rows are not compared with all that serve now
        current = _serving_now(staged[0]) if staged and not run.is_partial else None
        held = self.tables.predictions(run.model).pointer().held_versions
        limits = self.settings.models[run.model].batch
        facts = RunFacts(
            rows=run.rows_total or 0,
            stored=stored[0] if stored else sum(_reported(result) for result in results),
            counted=bool(stored),
            features=stored[1] if len(stored) > 1 else None,
            quarantined=sum(result["quarantined"] for result in results),
            non_finite=sum(result["non_finite"] for result in results),
            bad_rows=bad_rows_of(results),
            current=staged[0].table.generations.count(current) if current else None,
            min_size_ratio=limits.min_size_ratio,
            max_quarantined_fraction=limits.max_quarantined_fraction,
            drift=self._drift(run, current),
            max_drift=limits.max_drift,
            model_version=run.model_version or 0,
            held=run.model_version in held,
        )
        # the plan of some rows, or of the newest, has each entity once
        if run.is_partial or run.fingerprint.get("rows") == "newest" or not facts.needs_recount:
            return facts
        counted = self._recount(run)
        return replace(facts, distinct=counted.distinct, duplicates=counted.duplicates)

    def _drift(self, run: RunRecord, current: Manifest | None) -> dict[str, float]:
        if current is None or current.run_id is None:
            return {}
        return drift(self.ledger.histogram(current.run_id), self.ledger.histogram(run.run_id))

    def _recount(self, run: RunRecord) -> IdCount:
        column = run.fingerprint["entity_column"]
        check_source(self.settings, run.model, run.source)
        files = open_source(run.source, as_text=[column]).files
        return count_distinct_ids(files, column, examples=MAX_EXAMPLES)

    def _close(self, run: RunRecord) -> None:
        """Say that the run is published.

        What tables serve is decided already, so a full disk cannot undo it; a run that fills none fails then.
        """
        error = {}
        if run.parquet_folder:
            now = self.ledger.now()
            done = replace(self.ledger.load(run.run_id), state=RunState.PUBLISHED, finished_at=now)
            try:
                write_success(parts_of(self.settings, run) or "", RunView.of(done, now=now).to_json())
            except Exception as problem:  # each kind of storage has errors of its own
                if not self.tables.of(run):
                    raise
                log.exception("run.success_file_not_written", run_id=run.run_id)
                error = {"error": f"published, but the Parquet folder has no _SUCCESS: {sentence_of(problem)}"}
        sweep(self.settings, run)
        self.ledger.move(run, RunState.PUBLISHED, expected=[RunState.PUBLISHING], **error)

    def _fail(self, run: RunRecord, error: str) -> None:
        log.warning("run.failed", run_id=run.run_id, error=error)
        self.ledger.move(run, RunState.FAILED, expected=[RunState.PUBLISHING], error=error)


def _serving_now(staged: StagedGeneration) -> Manifest | None:
    current = staged.table.pointer().current
    return None if current is None else staged.table.generations.manifest(current)


def _reported(result: Mapping[str, Any]) -> int:
    return int(result["rows"] - result["quarantined"] - result["non_finite"])


def bad_rows_of(results: Iterable[Mapping[str, Any]]) -> tuple[BadRows, ...]:
    """Return why rows were left out, from the results of chunks.

    Raises:
        Unreadable: those are none.
    """
    with reading("the results of a run"):
        return merge_bad_rows([BadRows.from_json(entry) for result in results for entry in result["bad_rows"]])


def sweep(settings: Settings, run: RunRecord) -> None:
    """Remove the temporary files that killed workers left in a run's folders on this machine, where it may."""
    for find in (parts_of, quarantine_of):
        try:
            folder = find(settings, run)
            if folder and not is_uri(folder):
                sweep_temporary_files(Path(folder))
        except (OSError, BadInput) as error:  # they are only in the way
            log.warning("run.not_swept", run_id=run.run_id, error=sentence_of(error))
