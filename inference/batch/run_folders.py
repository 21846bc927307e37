"""Removes the folders of runs that nobody needs any more: tables written as Parquet for them, and their vectors."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.fs as fs

from inference.batch.ledger import KEEP_RUNS, Ledger
from inference.batch.records import RunRecord, RunState, is_run_id
from inference.errors import BadInput
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.storage import open_location
from inference.store import Table

log = get_logger(__name__)


def remove_folder(folder: str) -> None:
    """Remove a folder or URI with all that it holds.

    Raises:
        OSError: something cannot be removed, or the store does not answer.
    """
    place = open_location(folder)
    place.filesystem.delete_dir(place.path)


def sweep_runs(
    folder_of: Callable[[str], str],
    remove: Callable[[str], None],
    ledger: Ledger,
    predictions: Table,
    run: RunRecord,
) -> None:
    """Remove the folders of a model's runs, but not those of `run`, of runs that serve or can again, and of held ones.

    A failed run cannot be resumed once a newer one has begun. `folder_of`: run id → its folder, or "" → that of all.
    """
    kept = {run.run_id, *(one.run_id for one in predictions.generations.published() if one is not None)}
    try:
        place = open_location(folder_of("").rstrip("/"))
        infos = place.filesystem.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
        old = [info.base_name for info in infos if is_run_id(info.base_name) and info.base_name not in kept]
        if old:
            kept |= {one.run_id for one in ledger.newest(run.model, KEEP_RUNS) if one.state is RunState.HELD}
        for run_id in old:
            if run_id not in kept:
                remove(folder_of(run_id))
    except (OSError, pa.ArrowException, BadInput) as error:  # leftovers do no harm; the next run tries again
        log.warning("run.folders_not_swept", run_id=run.run_id, error=sentence_of(error))
