"""The generations that a run fills: of the prediction table, of the feature table, of both, or of neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from inference.batch.records import RunRecord
from inference.errors import Conflict
from inference.models import VersionRecord
from inference.redis.keys import TableKind
from inference.settings import BatchSettings
from inference.store import GenerationState, Manifest, Pointer, Table

#: the first of those that a run fills decides: its pointer says whether the run is published
KINDS = (TableKind.PREDICTIONS, TableKind.FEATURES)
#: features are the same for every model version
FEATURES_VERSION = 0
_PUBLISHED = (GenerationState.CURRENT, GenerationState.PREVIOUS)


@dataclass(frozen=True)
class StagedGeneration:
    """A run's generation in one table; `manifest` and `state` as they were looked up, None when Redis has none."""

    kind: TableKind
    table: Table
    manifest: Manifest | None
    state: GenerationState | None


@dataclass(frozen=True)
class RunTables:
    """Opens, finds, publishes and gives up what runs fill. `table`: of a model and a kind."""

    table: Callable[[TableKind, str], Table]

    def predictions(self, model: str) -> Table:
        """Return a model's prediction table."""
        return self.table(TableKind.PREDICTIONS, model)

    def open(self, run: RunRecord, version: VersionRecord, batch: BatchSettings, *, rows: int) -> dict[TableKind, int]:
        """Open an empty generation in each table that the settings name, and return their numbers."""
        wanted = {
            TableKind.PREDICTIONS: (batch.prediction_table, version.signature.outputs, version.version),
            TableKind.FEATURES: (batch.feature_table, version.contract.stored_fields, FEATURES_VERSION),
        }
        opened = {}
        for kind, (is_on, fields, model_version) in wanted.items():
            if is_on:
                manifest = self.table(kind, run.model).generations.begin(
                    fields,
                    rows_expected=rows,
                    model_version=model_version,
                    contract_hash=version.contract_hash,
                    keep_s=batch.keep,
                    run_id=run.run_id,
                )
                opened[kind] = manifest.number
        return opened

    def of(self, run: RunRecord) -> list[StagedGeneration]:
        """Return what a run fills, the one that decides first; none for a run that writes only Parquet."""
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

        The first decides, and only while the run is in `run_state`; the others follow it.

        Raises:
            NotFound: a generation does not exist (any more).
            Conflict: the run is in another state, or a generation was given up.
        """
        for position, staged in enumerate(self.of(run)):
            if staged.state not in _PUBLISHED:
                condition = {} if position else {"run_key": run_key, "run_state": run_state}
                staged.table.generations.publish(run.generation_of(staged.kind) or 0, **condition)

    def move_to_overlay(self, run: RunRecord, *, keep_s: float) -> None:
        """Serve a partial run's rows beside the generation that is current. May run twice, like `publish`.

        Raises:
            NotFound: a generation does not exist (any more).
            Conflict: a generation was given up.
        """
        for staged in self.of(run):
            staged.table.generations.move_to_overlay(run.generation_of(staged.kind) or 0, keep_s=keep_s)

    def is_published(self, run: RunRecord) -> bool:
        """Whether the generation that decides serves, or did; of a partial run, whether it was moved."""
        staged = self.of(run)
        ends = (GenerationState.COLLECTING,) if run.is_partial else _PUBLISHED
        return bool(staged) and staged[0].state in ends

    def are_loading(self, run: RunRecord) -> bool:
        """Whether all that the run has filled is still there, and unpublished."""
        return all(one.manifest and one.state is GenerationState.LOADING for one in self.of(run))

    def discard(self, model: str, generations: Mapping[TableKind, int], state: GenerationState) -> None:
        """Give generations up.

        Raises:
            Conflict: one is published.
        """
        for kind, number in generations.items():
            self.table(kind, model).generations.discard(number, state)

    def unpublished(self, model: str) -> Iterator[tuple[TableKind, Manifest]]:
        """Yield the generations that runs of a model opened and did not publish."""
        for kind in KINDS:
            table = self.table(kind, model)
            for manifest in table.generations.all():
                if manifest.run_id and table.generations.state(manifest.number) is GenerationState.LOADING:
                    yield kind, manifest

    def collect(self, model: str) -> None:
        """Remove the rows of what no reader needs any more."""
        for kind in KINDS:
            table = self.table(kind, model)
            for number in table.generations.collectable():
                table.generations.collect(number)

    def roll_back(self, model: str, generation: int | None) -> Pointer:
        """Serve the previous predictions again, and the previous features if the same run had published both.

        Return the pointer of the predictions.

        `generation`: the one of predictions to go back from; None means whichever serves now.

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
