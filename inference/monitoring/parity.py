"""Checks that batch and real time agree: computes a sample of each again the other way.

A different answer from the same vector is a disagreement, a defect. A different vector is drift: the features in the
store are not those of the table, or have changed since.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inference.batch.ledger import Ledger
from inference.batch.records import RunRecord
from inference.batch.scoring import PreparedRows, Preparer
from inference.errors import ModelUnavailable, NotFound, SourceError
from inference.features import Fallback, FeatureGatherer
from inference.features.rows import take
from inference.logs import get_logger
from inference.models import LoadedModel, ModelHost, prediction_values, score_rows
from inference.models.loaded import answers_agree, vector_hashes
from inference.monitoring.counters import ParityResult
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block, DType, rows_in
from inference.serving.answer_sample import SampledAnswer, sampled_answers
from inference.serving.answers import prediction_of
from inference.settings import Settings
from inference.sources import read_slices
from inference.store import Table

log = get_logger(__name__)

#: rows read of one chunk to draw a sample from
_READ_ROWS = 16_384
_EXAMPLES = 3


@dataclass(frozen=True)
class Given:
    """The original answers, and the hashes of the vectors that made them."""

    entity_ids: Sequence[str]
    vectors: Sequence[str]
    predictions: Sequence[Any]


@dataclass(frozen=True)
class Parity:
    """Checks one model at a time, in a process that may load models."""

    settings: Settings
    client: Client
    keys: Keys
    host: Callable[[], ModelHost]
    table: Callable[[TableKind, str], Table]
    fallback: Callable[[str], Fallback | None]

    def check(self, model: str) -> dict[str, int]:
        """Compute a sample of a model's answers again; return "PATH:RESULT" → number of answers.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        counts: Counter[str] = Counter()
        for path, results in (("batch", self._batch(model)), ("realtime", self._realtime(model))):
            counts.update(f"{path}:{result}" for result in results)
        return dict(counts)

    def _batch(self, model: str) -> list[ParityResult]:
        """Compute answers of the current generation again as real time does: from the store."""
        predictions = self.table(TableKind.PREDICTIONS, model)
        number = predictions.pointer().current
        manifest = None if number is None else predictions.generations.manifest(number)
        if number is None or manifest is None or manifest.run_id is None:
            return []
        try:
            run = Ledger(self.client, self.keys).load(manifest.run_id)
            loaded = self.host().get(model, manifest.model_version)
            rows = self._rows_of(run, loaded)
        except (ModelUnavailable, NotFound, SourceError) as error:  # forgotten or replaced: nothing to compare with
            log.info("parity.no_source", model=model, run_id=manifest.run_id, reason=error.message)
            return []
        if rows is None or not rows_in(rows.features):
            return []
        ids = rows.usable.ids.to_pylist()
        entries = predictions.read_generation(ids, number)
        stored = [None if entry is None else prediction_of(entry.values) for entry in entries]
        given = Given(ids, vector_hashes(loaded.vectoriser.inputs(_features(loaded, rows.features))), stored)
        gatherer = self._gatherer(model, loaded)
        gathered = gatherer.gather(ids, now=run.created_at)
        # rows per call as in a request's micro-batch; a run takes thousands
        size = self.settings.models[model].realtime.max_micro_batch
        return _compared(model, loaded, given, gathered.rows.block, gathered.rows.rejected, size)

    def _gatherer(self, model: str, loaded: LoadedModel) -> FeatureGatherer:
        table = self.table(TableKind.FEATURES, self.settings.features_owner(model))
        written_by = self.host().written_by(model)
        return FeatureGatherer(table, loaded.vectoriser, self.fallback(model), written_by=written_by)

    def _rows_of(self, run: RunRecord, loaded: LoadedModel) -> PreparedRows | None:
        """Return some rows of a run's table, prepared as the run prepared them."""
        ledger, planned = Ledger(self.client, self.keys), run.fingerprint
        number = random.randrange(run.chunks_total or 1)  # noqa: S311 - a sample
        chunk = ledger.plans.chunk(run.run_id, number)
        if chunk is None or planned is None:
            return None
        keys = [planned.entity_column, *([planned.event_time_column] if planned.event_time_column else [])]
        columns = list(dict.fromkeys([*keys, *loaded.vectoriser.columns]))
        batch = next(iter(read_slices(chunk.files, chunk.slices, columns=columns, batch_rows=_READ_ROWS)), None)
        if batch is None:
            return None
        sample = min(self.settings.models[run.model].parity.sample, batch.num_rows)
        drawn = np.random.default_rng().choice(batch.num_rows, sample, replace=False)
        preparer = Preparer(loaded.vectoriser, planned.entity_column, planned.event_time_column, run.created_at)
        return preparer.prepare(batch.take(pa.array(np.sort(drawn))))

    def _realtime(self, model: str) -> list[ParityResult]:
        """Compute sampled answers again as a run does: from a table, all in one call."""
        answers = sampled_answers(self.client, self.keys, model, self.settings.models[model].parity.sample)
        results = []
        for version in sorted({answer.model_version for answer in answers}):
            try:
                loaded = self.host().get(model, version)
            except ModelUnavailable:
                continue  # the version is gone meanwhile
            of_version = [answer for answer in answers if answer.model_version == version]
            if not loaded.vectoriser.contract.given:
                continue  # every feature comes from the clock: there is no table to compute from
            results += self._recomputed(model, loaded, of_version)
        return results

    def _recomputed(self, model: str, loaded: LoadedModel, answers: Sequence[SampledAnswer]) -> list[ParityResult]:
        gatherer = self._gatherer(model, loaded)
        blocks, rejected = [], []
        for answer in answers:  # each at its own instant
            gathered = gatherer.gather([answer.entity_id], now=answer.at)
            as_table = pa.RecordBatch.from_pydict(
                {f.table_column: gathered.rows.block[f.name].tolist() for f in loaded.vectoriser.contract.given}
            )
            rows = loaded.vectoriser.features_from_arrow(_typed(loaded, as_table), at=answer.at)
            blocks.append(rows.block)
            rejected.append(bool(rows.rejected[0] or gathered.rows.rejected[0]))
        given = Given(
            [answer.entity_id for answer in answers],
            [answer.vector for answer in answers],
            [answer.prediction for answer in answers],
        )
        block = {name: np.concatenate([each[name] for each in blocks]) for name in blocks[0]}
        return _compared(model, loaded, given, block, np.array(rejected), len(answers))


def _compared(
    model: str, loaded: LoadedModel, given: Given, block: Block, rejected: Any, rows_per_call: int
) -> list[ParityResult]:
    """Compute rows again, `rows_per_call` at a time, and compare the answers. `rejected` rows have no vector."""
    inputs = vector_hashes(loaded.vectoriser.inputs(block))
    same = np.array(
        [a == b and known is not None for a, b, known in zip(inputs, given.vectors, given.predictions, strict=True)],
        np.bool_,
    )
    rows = np.flatnonzero(same & ~np.asarray(rejected, np.bool_))
    results = [ParityResult.DRIFTED] * len(inputs)
    for start in range(0, len(rows), rows_per_call):
        part = rows[start : start + rows_per_call]
        scored = score_rows(loaded, take(block, part))
        values = prediction_values(scored.outputs)
        for row, value, failed in zip(part.tolist(), values, scored.failed.tolist(), strict=True):
            agree = not failed and answers_agree(value, given.predictions[row])
            results[row] = ParityResult.AGREED if agree else ParityResult.DISAGREED
    wrong = [given.entity_ids[row] for row, result in enumerate(results) if result is ParityResult.DISAGREED]
    if wrong:
        log.error("parity.disagreed", model=model, answers=len(wrong), entity_ids=wrong[:_EXAMPLES])
    return results


def _features(loaded: LoadedModel, block: Block) -> Block:
    """Return only the contract's features of a block."""
    return {name: block[name] for name in loaded.vectoriser.contract.names}


def _typed(loaded: LoadedModel, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns in the types of a table of these features."""
    columns = []
    for feature in loaded.vectoriser.contract.given:
        type_ = pa.string() if feature.dtype is DType.STRING else pa.from_numpy_dtype(feature.dtype.numpy)
        for _ in feature.shape:
            type_ = pa.list_(type_)
        columns.append(batch.column(feature.table_column).cast(type_))
    return pa.RecordBatch.from_arrays(columns, names=[each.table_column for each in loaded.vectoriser.contract.given])
