"""Removes the tables that were written as Parquet for runs that nobody needs any more."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as fs

from inference.batch.ledger import KEEP_RUNS, Ledger
from inference.batch.paths import snapshots_folder
from inference.batch.records import RunRecord, RunState, is_run_id
from inference.errors import BadInput
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.settings import Settings
from inference.storage import open_location
from inference.store import Table

log = get_logger(__name__)


def sweep_snapshots(settings: Settings, ledger: Ledger, predictions: Table, run: RunRecord) -> None:
    """Keep the snapshots of a run that begins, of the runs that serve or can serve again, and of held ones.

    A failed run cannot be resumed once a newer one has begun.
    """
    kept = {run.run_id, *(one.run_id for one in predictions.generations.published() if one is not None)}
    try:
        place = open_location(snapshots_folder(settings, run.model, ""))
        infos = place.filesystem.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
        old = [info for info in infos if is_run_id(info.base_name) and info.base_name not in kept]
        if old:
            kept |= {one.run_id for one in ledger.newest(run.model, KEEP_RUNS) if one.state is RunState.HELD}
        for info in old:
            if info.base_name not in kept:
                place.filesystem.delete_dir(info.path)
    except (OSError, pa.ArrowException, BadInput) as error:  # leftovers do no harm; the next run tries again
        log.warning("run.snapshots_not_swept", run_id=run.run_id, error=sentence_of(error))
