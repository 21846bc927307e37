"""Compares a run's predictions with those that serve, or served before it, and keeps the result with the run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from inference.batch.comparison.differences import DiffOptions, FeatureMoves, Mover, RunDiff, check_comparable
from inference.batch.comparison.feature_moves import stored_moves, table_moves
from inference.batch.comparison.joining import (
    BUCKET,
    HASH,
    SEGMENT_ROW,
    Parts,
    Reduction,
    Segments,
    bits_for,
    check_segment,
    match,
)
from inference.batch.comparison.values import Comparison, Movers, comparison_of
from inference.batch.ledger import Ledger
from inference.batch.paths import check_source
from inference.batch.plan import files_digest
from inference.batch.publishing import RunTables
from inference.batch.records import RunRecord
from inference.batch.scoring import read_ahead
from inference.clock import to_iso
from inference.errors import Conflict, ForecacheError, ModelUnavailable, NotFound, Unavailable
from inference.models import ModelRegistry
from inference.redis.keys import TableKind
from inference.settings import Settings
from inference.sources import Source, hash_parts, open_source
from inference.store import GenerationState, Manifest, Table, stored_id

_AHEAD = 2
_DEFAULT = DiffOptions()
_DIGEST_MARK = 0


@dataclass(frozen=True)
class Sides:
    """The generations to compare: `new` of the run, `old` of what serves, or served before it."""

    run: RunRecord
    table: Table
    new: Manifest
    old: Manifest


@dataclass(frozen=True)
class Differ:
    """Compares runs. Methods raise StoreUnavailable when Redis does not answer.

    Calls `give_way` before each part of the work, of some 250 000 rows.
    """

    settings: Settings
    ledger: Ledger
    tables: RunTables
    registry: ModelRegistry
    give_way: Callable[[], None] = lambda: None

    def compare(self, run: RunRecord, options: DiffOptions = _DEFAULT) -> RunDiff:
        """Compare a run with what serves, and keep the result. A threshold of None is that of the settings.

        Raises:
            Conflict: one of the two has no whole generation in Redis.
            BadInput: they have different outputs, or there is no such segment column.
            OSError: the folder of temporary files is full.
        """
        if options.threshold is None:
            options = replace(options, threshold=self.settings.model(run.model)[1].batch.flips_threshold)
        sides = self.check(run, options)
        diff = self._compare(sides, options)
        if self._sides(run) != sides:
            raise Conflict(f"what serves changed while run {run.run_id} was compared: try again", field="run_id")
        self.ledger.keep_diff(run.run_id, diff.to_text())
        # an entity that was forgotten meanwhile: forgetting looks at what is kept, and does so after it is on the list
        left = self._without_forgotten(run.model, diff)
        if left is not diff:
            self.ledger.keep_diff(run.run_id, left.to_text())
        return left

    def _without_forgotten(self, model: str, diff: RunDiff) -> RunDiff:
        ids = list({mover.id for output in diff.outputs for mover in output.movers if mover.id is not None})
        found = self.tables.predictions(model).forgotten.find([stored_id(one) for one in ids])
        gone = {one for one, is_gone in zip(ids, found.tolist(), strict=True) if is_gone}
        if not gone:
            return diff
        outputs = [
            replace(output, movers=[mover for mover in output.movers if mover.id not in gone])
            for output in diff.outputs
        ]
        return replace(diff, outputs=outputs)

    def compare_or_recall(self, run: RunRecord, options: DiffOptions) -> RunDiff:
        """Return `compare`, or the kept result if the rows are gone from Redis.

        Raises: see `compare`.
        """
        try:
            return self.compare(run, options)
        except Conflict:
            kept = self.kept(run.run_id)
            if kept is None:
                raise
            return replace(kept, is_kept=True)

    def kept(self, run_id: str) -> RunDiff | None:
        """Return the last comparison of a run, or None.

        Raises:
            Unreadable: another release wrote it.
        """
        text = self.ledger.diff(run_id)
        return None if text is None else RunDiff.from_text(text, run_id)

    def check(self, run: RunRecord, options: DiffOptions) -> Sides:
        """Return the generations to compare.

        Raises: see `compare`.
        """
        sides = self._sides(run)
        check_comparable(f"run {run.run_id}", sides.new.fields, sides.old.fields)
        if options.segment is not None:
            check_segment(self._source(run), options.segment)
        return sides

    def _sides(self, run: RunRecord) -> Sides:
        if run.is_partial:
            raise Conflict(f"run {run.run_id} is partial: it has no generation of its own to compare", field="run_id")
        if not run.state.is_over and run.chunks_done != (run.chunks_total or -1):
            raise Conflict(f"run {run.run_id} is {run.state}: compare it when all its rows are scored", field="run_id")
        table = self.tables.predictions(run.model)
        new = None if run.generation is None else table.generations.manifest(run.generation)
        state = None if new is None else table.generations.state(new.number)
        pointer = table.pointer()
        if new is None or state not in (GenerationState.LOADING, GenerationState.CURRENT):
            raise Conflict(f"run {run.run_id} has no predictions in Redis (any more) to compare", field="run_id")
        if state is GenerationState.LOADING and run.chunks_done != run.chunks_total:
            raise Conflict(f"run {run.run_id} has scored only a part of its rows: resume it first", field="run_id")
        number = pointer.current if state is GenerationState.LOADING else pointer.previous
        old = None if number is None else table.generations.manifest(number)
        if old is None:
            raise Conflict(f"nothing serves, or served before, to compare run {run.run_id} with", field="run_id")
        return Sides(run, table, new, old)

    def _compare(self, sides: Sides, options: DiffOptions) -> RunDiff:
        run, names = sides.run, [""]
        reductions = [Reduction(manifest) for manifest in (sides.old, sides.new)]
        bits = bits_for(max(sides.old.rows_expected, sides.new.rows_expected))
        comparisons = {
            spec.name: comparison_of(spec, options, ChainMap(*(one.texts.get(spec.name, {}) for one in reductions)))
            for spec in sides.new.fields
        }
        with ExitStack() as files:
            parts = [files.enter_context(Parts(one.dtype, bits)) for one in reductions]
            for manifest, reduction, into in zip((sides.old, sides.new), reductions, parts, strict=True):
                for batch in read_ahead(sides.table.generations.scan(manifest), ahead=_AHEAD):
                    self.give_way()
                    into.add(reduction.of(batch))
            segments = None
            if options.segment is not None:
                segments = Segments(files.enter_context(Parts(SEGMENT_ROW, bits)))
                segments.read(
                    self._source(run), self.settings.models[run.model], options.segment, give_way=self.give_way
                )
                names = segments.names
            movers = {name: Movers(options.top) for name in comparisons}
            both, new, gone = _join(parts, reductions, comparisons, movers, segments, self.give_way)
        return RunDiff(
            run_id=run.run_id,
            model=run.model,
            made_at=to_iso(self.ledger.now()),
            generation=sides.new.number,
            model_version=sides.new.model_version,
            against_generation=sides.old.number,
            against_version=sides.old.model_version,
            against_run=sides.old.run_id,
            rows_both=both,
            rows_new=new,
            rows_gone=gone,
            options=options,
            outputs=[
                replace(one.result(names), movers=self._movers(sides, movers[name]))
                for name, one in comparisons.items()
            ],
            features=self._features(sides) if options.features else None,
            notes=self._notes(run, options),
        )

    def _movers(self, sides: Sides, movers: Movers) -> list[Mover]:
        """Read the ids of those that moved most, by their buckets and hashes."""
        kept = movers.kept
        ids: dict[int, str | None] = {}
        for batch in sides.table.generations.scan(sides.new, {bucket for _, _, bucket, _, _ in kept}) if kept else ():
            hashes = hash_parts(batch.data, batch.id_starts, batch.id_lengths)
            for row in np.flatnonzero(np.isin(hashes, [one[1] for one in kept])).tolist():
                start = int(batch.id_starts[row])
                raw = batch.data[start : start + int(batch.id_lengths[row])].tobytes()
                ids[int(hashes[row])] = None if raw[0] == _DIGEST_MARK else raw.decode()
        return [Mover(ids.get(hash_), old, new, distance) for distance, hash_, _, old, new in kept]

    def _source(self, run: RunRecord) -> Source:
        check_source(self.settings, run.model, run.read_from)
        return open_source(run.read_from, as_text=[self.settings.models[run.model].entity_column])

    def _notes(self, run: RunRecord, options: DiffOptions) -> list[str]:
        if options.segment is None or run.fingerprint is None:
            return []
        if files_digest(self._source(run).files) == run.fingerprint.files:
            return []
        return [f"{run.source} was replaced since the run read it: segments are those of the table as it is now"]

    def _features(self, sides: Sides) -> FeatureMoves:
        try:
            return self._stored_features(sides) or self._columns(sides)
        except Unavailable:
            raise
        except ForecacheError as error:  # a table or a version is gone; the predictions can be compared all the same
            return FeatureMoves(f"not compared: {error.message}")

    def _names(self, run: RunRecord) -> Sequence[str]:
        try:
            contract = self.registry.get(run.model, run.model_version or 0).contract
        except ModelUnavailable as error:
            raise NotFound(error.message) from error
        return [feature.name for feature in contract.features]

    def _stored_features(self, sides: Sides) -> FeatureMoves | None:
        """Compare stored features; None if one of the two runs has none in Redis."""
        number = sides.run.feature_generation
        table = self.tables.table(TableKind.FEATURES, sides.run.model)
        new = None if number is None else table.generations.manifest(number)
        pointer = table.pointer()
        other = pointer.previous if number is not None and pointer.current == number else pointer.current
        old = None if other is None else table.generations.manifest(other)
        if new is None or old is None or old.run_id != sides.old.run_id:
            return None
        if table.generations.state(new.number) not in (GenerationState.LOADING, GenerationState.CURRENT):
            return None
        return stored_moves(table, new, old, self._names(sides.run))

    def _columns(self, sides: Sides) -> FeatureMoves:
        """Compare the tables of both runs."""
        run = sides.run
        before = None if sides.old.run_id is None else self.ledger.load(sides.old.run_id)
        if before is None or before.fingerprint is None or run.fingerprint is None:
            return FeatureMoves("not compared: nobody knows the table of what serves")
        if before.fingerprint.files == run.fingerprint.files:
            return FeatureMoves("not compared: both runs read the same table, which had not changed")
        if before.read_from == run.read_from:
            return FeatureMoves(
                f"not compared: {run.source} was replaced between the runs, and Redis has no stored features of both "
                "(feature_table)"
            )
        check_source(self.settings, run.model, before.read_from)
        return table_moves(open_source(run.read_from), open_source(before.read_from), self._names(run))


def _join(
    parts: Sequence[Parts],
    reductions: Sequence[Reduction],
    comparisons: dict[str, Comparison],
    movers: dict[str, Movers],
    segments: Segments | None,
    give_way: Callable[[], None],
) -> tuple[int, int, int]:
    """Compare part after part; return the numbers of entities in both, only in the new, only in the old generation."""
    both = only_new = only_old = 0
    for number in range(parts[0].count):
        give_way()
        old, new = (one.part(number) for one in parts)
        at_old, at_new = match(old[HASH], new[HASH])
        both, only_new = both + len(at_old), only_new + len(new) - len(at_new)
        only_old += len(old) - len(at_old)
        hashes, buckets = new[HASH][at_new], new[BUCKET][at_new]
        chosen = None if segments is None else segments.of(number, hashes)
        for name, comparison in comparisons.items():
            before, after = reductions[0].column(old, name), reductions[1].column(new, name)
            comparison.add_side(before, is_new=False)
            comparison.add_side(after, is_new=True)
            pair = before[at_old], after[at_new]
            distance = comparison.add_pairs(*pair, chosen)
            if distance is not None:
                movers[name].add(distance, *pair, hashes, buckets)
    return both, only_new, only_old
