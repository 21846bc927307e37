"""Delta runs: which run's rows a new one may carry over, and what happens to them when all chunks are done.

When a run is planned, Redis copies the whole generation that serves into the new one. Workers score only the rows
whose vectors changed, over the copies. At the end, rows that the new run has not met leave.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.batch.erasing import ErasedRows, IsDoomed, erase_rows
from inference.batch.ledger import KEEP_RUNS, Ledger
from inference.batch.paths import vectors_folder
from inference.batch.records import RunRecord, RunState, Trigger
from inference.batch.run_folders import sweep_runs
from inference.batch.sinks import SUCCESS
from inference.batch.vectors import Facts, TakenVectors, VectorCheck, Vectors, merge_parts, open_vectors, remove_vectors
from inference.errors import BadInput, SourceError
from inference.failures import sentence_of
from inference.features import FeatureContract
from inference.logs import get_logger
from inference.models import VersionRecord
from inference.settings import Settings
from inference.sources import hash_ids
from inference.storage import open_location
from inference.store import GENERATION_FORMAT, Manifest, Table, bucket_count, stored_id
from inference.wording import counted

log = get_logger(__name__)

_KEY_BYTES = 16
#: a generation that Redis forgets earlier than this is not copied
_LIVES_FOR_S = 3600.0


class NoBase(Exception):
    """Raised when a run cannot carry rows over; says why."""


@dataclass(frozen=True)
class Base:
    """The run whose rows are carried over. `manifest`: of its generation; None if it filled only Parquet parts."""

    facts: Facts
    manifest: Manifest | None


@dataclass(frozen=True)
class Deltas:
    """Plans and ends the runs of models that keep their vectors. Calls `give_way` between the parts of long work.

    `predictions` returns a model's prediction table.
    """

    settings: Settings
    ledger: Ledger
    predictions: Callable[[str], Table]
    give_way: Callable[[], None] = lambda: None

    def plan(self, run: RunRecord, version: VersionRecord, rows: int) -> tuple[dict[str, str | int], Base | None]:
        """Return fields for the run's record, and the run whose rows it carries over; None if it scores all rows."""
        facts: dict[str, str | int] = {
            "vector_key": secrets.token_hex(_KEY_BYTES),
            "model_files": version.fingerprint,
        }
        if not run.delta:
            return facts, None
        try:
            base = self._base(run, version, rows)
        except NoBase as reason:
            log.info("run.scores_all_rows", run_id=run.run_id, reason=str(reason))
            return facts | {"full_reason": str(reason)}, None
        facts |= {"vector_key": base.facts.key, "base_run": base.facts.run_id, "deltas": base.facts.deltas + 1}
        if base.manifest is not None:
            facts["base_generation"] = base.manifest.number
        return facts, base

    def copy(self, run: RunRecord, base: Base, number: int) -> None:
        """Copy the rows of the base into the run's generation, which nobody has written into yet."""
        generations = self.predictions(run.model).generations
        manifest = generations.manifest(number)
        if manifest is not None and base.manifest is not None:
            generations.copy(base.manifest, manifest, give_way=self.give_way)

    def changes(self, run: RunRecord) -> list[str]:
        """Return in words why a delta run cannot go on; empty if it can."""
        serving = None if run.base_generation is None else self.predictions(run.model).pointer().current
        if serving == run.base_generation:
            return []
        return [f"generation {run.base_generation}, whose rows it carries over, serves no more"]

    def settle(self, run: RunRecord) -> None:
        """Gather the vectors of a run whose chunks are done, and remove the rows that it has not met. May run twice.

        Raises:
            SourceError: the vectors of a delta run cannot be read. Those of another run are given up, and its record
                says so.
        """
        if run.rows_carried is not None:  # before its gates failed; now somebody forces it
            return
        try:
            folder, chunks = self._folder(run.model, run.run_id), run.chunks_total or 0
            chunks += run.rows_unread is not None  # their part
            ours = merge_parts(folder, _facts_of(run), chunks=chunks, give_way=self.give_way)
        except SourceError as error:
            if run.base_run:
                raise
            log.warning("run.vectors_lost", run_id=run.run_id, error=error.message)
            self.ledger.note(run, error=f"the next delta run will score all rows: {error.message}")
            return
        if run.base_run:
            removed = self._remove(run, earlier_vectors(self.settings, run.model, run.base_run), ours)
            carried = sum(int(result.get("carried", 0)) for result in self.ledger.results(run.run_id).values())
            carried += run.rows_unread or 0
            self.ledger.note(run, rows_carried=carried, rows_rescored=max(ours.rows - carried, 0), rows_removed=removed)

    def sweep(self, run: RunRecord) -> None:
        """Remove the vectors of runs that serve no more, and to which nobody can roll back."""
        sweep_runs(partial(self._folder, run.model), remove_vectors, self.ledger, self.predictions(run.model), run)

    def forget(self, model: str, run_id: str) -> None:
        """Remove the vectors of a run."""
        try:
            remove_vectors(self._folder(model, run_id))
        except (OSError, BadInput) as error:
            log.warning("run.vectors_not_removed", run_id=run_id, error=sentence_of(error))

    def erase(
        self, model: str, run_id: str, parts: str | None, is_doomed: IsDoomed, stored: Iterable[bytes] = ()
    ) -> tuple[ErasedRows, int]:
        """Remove rows from a run's Parquet parts, and their vectors; return what left the parts, and how many vectors.

        `parts`: the folder; None for none. `stored`: ids, by their stored forms, whose vectors leave in any case.

        Raises:
            OSError: a part cannot be read or written.
            SourceError: the vectors are damaged, or cannot be written.
        """
        vectors = TakenVectors(self._folder(model, run_id))
        erased = ErasedRows()
        if parts is not None:
            erased = erase_rows(parts, is_doomed, before=vectors.take, give_way=self.give_way)
        gone = pa.array([*stored, *map(stored_id, sorted(erased.ids))], pa.large_binary())
        return erased, vectors.put_back(hash_ids(gone), erased.places)

    def _base(self, run: RunRecord, version: VersionRecord, rows: int) -> Base:
        batch = self.settings.models[run.model].batch
        manifest = self._serving(run, version, rows) if batch.prediction_table else None
        run_id = manifest.run_id if manifest else self._last_parquet(run)
        vectors = self._vectors(run.model, run_id or "")
        facts = vectors.facts
        if (facts.model_version, facts.contract_hash) != (version.version, version.contract_hash):
            raise NoBase(f"run {run_id} was of model version {facts.model_version}, or of another feature contract")
        if facts.files != version.fingerprint:
            raise NoBase("the files of the model version have changed since")
        if batch.parquet_path and not _is_complete(facts.parquet_folder):
            raise NoBase(f"the Parquet parts of run {run_id} are gone")
        stored = vectors.rows if manifest is None else self.predictions(run.model).generations.count(manifest)
        if stored != vectors.rows:
            raise NoBase(f"of the rows of run {run_id}, Redis has {stored:,} left of {vectors.rows:,}")
        if run.trigger is Trigger.BEAT and facts.deltas + 1 >= batch.full_every:
            raise NoBase(f"full_every is {batch.full_every}, and it follows {counted(facts.deltas, 'delta run')}")
        return Base(facts, manifest)

    def _serving(self, run: RunRecord, version: VersionRecord, rows: int) -> Manifest:
        table = self.predictions(run.model)
        manifest, _ = table.generations.published()
        if manifest is None:
            raise NoBase("no generation serves yet")
        number, event_time = manifest.number, self.settings.models[run.model].event_time_column
        if manifest.rows_as_of is not None and copied_at(run, version.contract, event_time) is None:
            raise NoBase(f"generation {number} has no event times")
        if manifest.format != GENERATION_FORMAT:
            raise NoBase(f"generation {number} was written by an earlier release")
        if manifest.run_id is None or manifest.fields != version.signature.outputs:
            raise NoBase(f"generation {number} is not of a run, or has other outputs")
        if bucket_count(rows, manifest.buckets) != manifest.buckets:
            raise NoBase(f"the table has over a tenth more or fewer rows than generation {number}")
        if manifest.deadline - table.now() < _LIVES_FOR_S:
            raise NoBase(f"Redis forgets generation {number} within the hour")
        return manifest

    def _last_parquet(self, run: RunRecord) -> str:
        for one in self.ledger.newest(run.model, KEEP_RUNS):
            if one.state is RunState.PUBLISHED and one.parquet_folder and not one.is_partial:
                return one.run_id
        raise NoBase("no run has written Parquet parts yet, or features are all that it writes")

    def _vectors(self, model: str, run_id: str) -> Vectors:
        try:
            vectors = open_vectors(self._folder(model, run_id))
        except (BadInput, OSError) as error:
            raise NoBase(f"the vectors of run {run_id} cannot be read: {sentence_of(error)}") from error
        if vectors is None:
            raise NoBase(f"run {run_id} kept no digests, or they were lost")
        return vectors

    def _remove(self, run: RunRecord, before: Vectors, ours: Vectors) -> int:
        gone = list(before.without(ours))
        if not gone:
            return 0
        hashes = np.sort(np.concatenate([part for part, _ in gone]))
        table = self.predictions(run.model)
        manifest = None if run.generation is None else table.generations.manifest(run.generation)
        if manifest is not None:
            buckets = np.unique(np.concatenate([part for _, part in gone]) % np.uint32(manifest.buckets))

            def is_gone(fields: pa.Array) -> npt.NDArray[np.bool_]:
                self.give_way()
                found = hash_ids(fields)
                mask: npt.NDArray[np.bool_] = (
                    hashes[np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)] == found
                )
                return mask

            table.generations.remove(manifest, buckets.tolist(), is_gone)
        return len(hashes)

    def _folder(self, model: str, run_id: str) -> str:
        return vectors_folder(self.settings, model, run_id)


def copied_at(run: RunRecord, contract: FeatureContract, event_time_column: str | None) -> float | None:
    """Return the `as_of` that the run gives to all its rows; None if it depends on the row."""
    dated = event_time_column or any(group.event_time_column for group in contract.table_groups)
    return None if dated else run.created_at


def vector_check(
    settings: Settings, run: RunRecord, contract: FeatureContract, event_time_column: str | None, *, latest: float
) -> VectorCheck:
    """Return what tells a worker which rows of a run it must score. `latest`: as for `VectorSink`.

    Raises:
        SourceError: this machine cannot read the vectors of the run whose rows are carried over.
    """
    before = earlier_vectors(settings, run.model, run.base_run) if run.base_run else None
    return VectorCheck(bytes.fromhex(run.vector_key or ""), before, copied_at(run, contract, event_time_column), latest)


def earlier_vectors(settings: Settings, model: str, run_id: str) -> Vectors:
    """Return the vectors of the run whose rows are carried over.

    Raises:
        SourceError: this machine cannot read them.
    """
    folder = vectors_folder(settings, model, run_id)
    vectors = open_vectors(folder)
    if vectors is None:
        raise SourceError(
            f"{folder} holds no vectors of run {run_id}, whose rows are carried over: delta_path must be a folder that "
            "all batch and maintenance workers share",
            field="delta_path",
        )
    return vectors


def _facts_of(run: RunRecord) -> Facts:
    return Facts(
        run_id=run.run_id,
        model_version=run.model_version or 0,
        files=run.model_files,
        contract_hash=run.fingerprint.contract_hash if run.fingerprint else "",
        key=run.vector_key or "",
        deltas=run.deltas,
        parquet_folder=run.parquet_folder or "",
    )


def _is_complete(parquet_folder: str) -> bool:
    if not parquet_folder:
        return False
    try:
        where = open_location(parquet_folder)
        return bool(where.filesystem.get_file_info(f"{where.path}/{SUCCESS}").is_file)
    except (BadInput, OSError):
        return False
