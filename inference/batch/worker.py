"""Works on one chunk: claims it, keeps the claim alive, scores, reports. No failure here loses a chunk."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from inference import tracing
from inference.batch.delta import vector_check
from inference.batch.ledger import Claim, Ledger, Progress
from inference.batch.paths import check_files, parquet_folder_of, quarantine_folder_of, vectors_folder
from inference.batch.publishing import RunTables, StagedGeneration
from inference.batch.quarantine import Quarantine
from inference.batch.records import Chunk, Fingerprint, RunRecord, RunState, is_run_id
from inference.batch.scoring import ChunkResult, ChunkScorer, Preparer
from inference.batch.sinks import ParquetSink, Sink, TableSink
from inference.batch.vectors import VectorCheck, VectorSink
from inference.errors import (
    ContractError,
    NotFound,
    SettingsError,
    SourceError,
    StaleAttempt,
    StoreFull,
    Unavailable,
    UnknownFormat,
    Unreadable,
)
from inference.failures import Failures
from inference.features import FeatureContract
from inference.logs import bound, get_logger
from inference.models import LoadedModel, MicroBatches, ModelHost
from inference.redis.keys import TableKind
from inference.redis.locks import Lease
from inference.schema import DType
from inference.settings import Settings
from inference.sources import read_slices

log = get_logger(__name__)

#: rows and bytes that are read at once: enough for the largest micro-batch, but fewer rows when they are wide
_READ_ROWS = 65_536
_READ_BYTES = 32 << 20
#: the assumed size of a text value
_TEXT_BYTES = 32
#: the longest rest after a failed attempt
_MAX_PAUSE_S = 10.0
#: with so few chunks on the queue, workers soon stand still until the reconciler's timer; with a small
#: `max_in_flight` the queue never holds more
_NEARLY_IDLE = 2
#: at this length the queue is filled a first time, while workers are busy; earlier the reconciler finds little to send
_RUNNING_LOW = 8


@dataclass(frozen=True)
class ChunkWorker:
    """Scores chunks in one process. `poke` wakes the reconciler. `give_way`: see `ChunkScorer.alive`."""

    settings: Settings
    ledger: Ledger
    host: Callable[[], ModelHost]
    tables: RunTables
    poke: Callable[[], None]
    micro_batches: MicroBatches
    failures: Failures = field(default_factory=lambda: Failures(__name__, "chunk"))
    give_way: Callable[[str | None], None] = lambda _: None

    def score(self, run_id: str, chunk_number: int) -> None:
        """Score one chunk, unless it is done. Safe to run twice, also at the same time.

        A refused claim, a run that is gone and an outage end quietly: the reconciler sends the chunk again if needed.
        """
        if not is_run_id(run_id):  # the log must not repeat it
            log.info("chunk.dropped", reason="no run has such an id")
            return
        with (
            tracing.run_span(run_id, "score a chunk", {"forecache.run.chunk": chunk_number}),
            bound(run_id=run_id, chunk=chunk_number),
        ):
            self._claim_and_score(run_id, chunk_number)

    def _claim_and_score(self, run_id: str, chunk_number: int) -> None:
        try:
            claim = self.ledger.claim(run_id, chunk_number, uuid.uuid4().hex)
            if isinstance(claim, str):
                log.info("chunk.dropped", reason=claim)
                return
            self._attempt(claim)
        except (StaleAttempt, NotFound) as error:
            log.info("chunk.dropped", reason=error.message)
        except StoreFull as error:  # another attempt would only take memory from others
            self.ledger.fail_for_memory(run_id, error)
        except Unavailable as error:
            log.warning("chunk.interrupted", error=error.message)

    def _attempt(self, claim: Claim) -> None:
        run = self.ledger.load(claim.run_id)
        try:
            self._score(run, claim)
        except (StaleAttempt, NotFound, StoreFull):
            raise
        except (SourceError, ContractError, SettingsError, Unreadable) as error:  # other workers would fail too
            log.warning("chunk.refused", error=error.message)
            if self.ledger.renew(claim):
                self.ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING], error=error.message)
        except UnknownFormat as error:  # a worker of the release that planned the run may score it
            log.warning("chunk.refused", error=error.message)
            self.ledger.give_back(claim, error=error.message, pause_s=_MAX_PAUSE_S)
        # a model, a disk or a driver may raise anything: another attempt follows
        except Exception as error:  # noqa: BLE001 - `tell` logs it
            text = self.failures.tell(error, run.run_id, attempt=claim.attempt)
            self.ledger.give_back(claim, error=text, pause_s=min(2.0**claim.attempt / 2, _MAX_PAUSE_S))
        else:
            self.failures.over(run.run_id)

    def _score(self, run: RunRecord, claim: Claim) -> None:
        run.check_format()
        started = time.monotonic()
        with Lease(lambda: self.ledger.renew(claim), name=f"{run.run_id} chunk {claim.chunk}") as lease:
            chunk = self.ledger.plans.chunk(run.run_id, claim.chunk)
            if chunk is None or run.fingerprint is None:
                raise StaleAttempt(f"run {run.run_id} has no plan any more")
            model = self.host().get(run.model, run.model_version)
            scorer = self._scorer(run, run.fingerprint, claim, model, lease)
            result = scorer.score(self._read(run, run.fingerprint, chunk, model), chunk.rows_to_score)
        took_s = round(time.monotonic() - started, 3)
        self._finish(claim, result, took_s)

    def _finish(self, claim: Claim, result: ChunkResult, took_s: float) -> None:
        left_out = result.quarantined + result.non_finite
        facts = {**result.to_json(), "attempt": claim.attempt, "took_s": took_s}
        progress = self.ledger.finish(
            claim, facts, rows=result.rows, quarantined=left_out, histogram=result.histogram.histograms
        )
        if progress is None:
            raise StaleAttempt(f"another worker finished chunk {claim.chunk} of run {claim.run_id}")
        log.info("chunk.scored", rows=result.rows, took_s=took_s)
        if self._wants_poke(progress):
            self.poke()

    def _wants_poke(self, progress: Progress) -> bool:
        """Return whether the reconciler should act now: the run is complete, or its queue runs low."""
        if progress.done == progress.total:
            return True
        return progress.next_chunk < progress.total and (
            progress.in_flight <= _NEARLY_IDLE or progress.in_flight == _RUNNING_LOW
        )

    def _read(self, run: RunRecord, planned: Fingerprint, chunk: Chunk, model: LoadedModel) -> Iterator[pa.RecordBatch]:
        check_files(self.settings, run.model, run.read_from, chunk.files.values())
        keys = [planned.entity_column, *([planned.event_time_column] if planned.event_time_column else [])]
        columns = list(dict.fromkeys([*keys, *model.vectoriser.columns]))
        rows = _rows_at_once(model.vectoriser.contract)
        return read_slices(chunk.files, chunk.slices, columns=columns, batch_rows=rows)

    def _sinks(
        self,
        run: RunRecord,
        claim: Claim,
        model: LoadedModel,
        generations: Sequence[StagedGeneration],
        before: str | None,
    ) -> tuple[list[Sink], list[Sink]]:
        """Return the sinks of the predictions, and those of the features. `before`: as for `ParquetSink`."""
        sinks: dict[TableKind, list[Sink]] = {TableKind.PREDICTIONS: [], TableKind.FEATURES: []}
        for staged in generations:
            if staged.manifest is None:
                raise StaleAttempt(f"run {run.run_id} has no generation any more")
            sinks[staged.kind].append(TableSink(staged.table, staged.manifest))
        if folder := parquet_folder_of(self.settings, run):
            outputs = model.record.signature.outputs
            parts = ParquetSink(folder, outputs, chunk=claim.chunk, token=claim.token, earlier=before)
            sinks[TableKind.PREDICTIONS].append(parts)
        return sinks[TableKind.PREDICTIONS], sinks[TableKind.FEATURES]

    def _vector_check(
        self, run: RunRecord, planned: Fingerprint, model: LoadedModel, generations: Sequence[StagedGeneration]
    ) -> VectorCheck:
        manifest = next((one.manifest for one in generations if one.kind is TableKind.PREDICTIONS), None)
        latest = math.inf if manifest is None else manifest.created_at
        contract = model.vectoriser.contract
        return vector_check(self.settings, run, contract, planned.event_time_column, latest=latest)

    def _before_step(self, lease: Lease, device: str | None) -> None:
        lease.ensure_held()
        self.give_way(device)

    def _scorer(
        self, run: RunRecord, planned: Fingerprint, claim: Claim, model: LoadedModel, lease: Lease
    ) -> ChunkScorer:
        generations = self.tables.of(run)
        check = self._vector_check(run, planned, model, generations) if run.vector_key else None
        before = check.before.facts.parquet_folder if check and check.before else None
        sinks, feature_sinks = self._sinks(run, claim, model, generations, before)
        if check is not None:
            folder = vectors_folder(self.settings, run.model, run.run_id)
            is_needed = check.before is not None
            sinks.append(
                VectorSink(folder, chunk=claim.chunk, token=claim.token, latest=check.latest, is_needed=is_needed)
            )
        return ChunkScorer(
            model=model,
            preparer=Preparer(
                model.vectoriser,
                planned.entity_column,
                planned.event_time_column,
                run.created_at,
                check,
                self.tables.predictions(run.model).forgotten.all(),
            ),
            sinks=sinks,
            feature_sinks=feature_sinks,
            quarantine=Quarantine(quarantine_folder_of(self.settings, run), chunk=claim.chunk, token=claim.token),
            fence=lease.check,
            alive=partial(self._before_step, lease),
            micro_batch=self.micro_batches.of(run.model, model, self.settings.models[run.model].batch.micro_batch_rows),
            device=model.runtime.device,
        )


def _rows_at_once(contract: FeatureContract) -> int:
    """Return how many rows are read at once, so that wide rows take little memory too."""
    row_bytes = sum(
        feature.width * (_TEXT_BYTES if feature.dtype is DType.STRING else feature.dtype.numpy.itemsize)
        for feature in contract.features
    )
    return max(1, min(_READ_ROWS, _READ_BYTES // max(row_bytes, 1)))
