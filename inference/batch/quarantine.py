"""Keeps the rows that a run leaves out, with reason and original values, and removes them with the run's record.

Each chunk that leaves rows out writes one Parquet part.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq

from inference.batch.ledger import KEEP_RECORD_S
from inference.batch.paths import quarantine_folder_of_id
from inference.errors import BadInput
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings
from inference.sources import concat_rows
from inference.storage import open_location

log = get_logger(__name__)

#: rows that are kept of one chunk, so that a table of bad rows does not fill the memory
MAX_ROWS = 100_000

_PART = re.compile(r"part-\d+\.parquet|\.part-\d+\.\w+\.tmp")
_HEAD = (("entity_id", pa.string()), ("reason", pa.string()), ("feature", pa.string()))

#: after a failed removal, the next one follows after this long
_AGAIN_S = 86400.0
_PER_ROUND = 100
#: the replies of TTL for a key that does not exist, or does not expire
_NO_KEY, _NO_EXPIRY = -2, -1
_ELSEWHERE = "the entry names no folder that quarantine_path gives to one of the model's runs: remove it by hand"


class Quarantine:
    """Gathers one chunk's bad rows and writes them when the chunk is whole.

    Columns: `entity_id` (as text; null if the table has null), `reason`, `feature` (null when no single one is at
    fault) and `values`, a struct of the columns that the run read, unchanged.
    """

    def __init__(self, folder: str, *, chunk: int, token: str) -> None:
        self._folder = folder
        self._name = f"part-{chunk:06d}.parquet"
        self._temporary = f".part-{chunk:06d}.{token}.tmp"
        self._parts: list[pa.Table] = []
        self._room = MAX_ROWS

    def add(
        self, batch: pa.RecordBatch, ids: pa.Array, rows: npt.NDArray[Any], *, reason: str, feature: str | None = None
    ) -> None:
        """Add rows of a batch by position; `ids`: the batch's ids as text."""
        taken = pa.array(rows[: self._room], pa.int64())
        if not len(taken):
            return
        self._room -= len(taken)
        values = batch.take(taken).to_struct_array()
        why = (pa.repeat(pa.scalar(text, pa.string()), len(taken)) for text in (reason, feature))
        schema = pa.schema([*_HEAD, ("values", values.type)])
        text = pc.cast(ids.take(taken), pa.string())
        self._parts.append(pa.Table.from_arrays([text, *why, values], schema=schema))

    def commit(self) -> None:
        """Write the part, complete or not at all. It replaces an earlier attempt's part, which held the same rows."""
        if not self._parts:
            return
        table = concat_rows(self._parts)
        where = open_location(self._folder)
        final = f"{where.path}/{self._name}"
        if not where.is_local:  # an object appears only when it is whole
            pq.write_table(table, final, filesystem=where.filesystem)
            return
        Path(where.path).mkdir(parents=True, exist_ok=True)
        temporary = Path(where.path) / self._temporary
        try:
            pq.write_table(table, temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


def remove_parts(folder: str) -> int:
    """Remove a run's parts, and its folder if it is empty then; return the number of parts.

    Raises:
        OSError: a part cannot be removed, or the store does not answer.
    """
    where = open_location(folder)
    selector = fs.FileSelector(where.path, allow_not_found=True)
    parts = [info.path for info in where.filesystem.get_file_info(selector) if _PART.fullmatch(info.base_name)]
    for part in parts:
        where.filesystem.delete_file(part)
    if where.is_local and parts:
        with suppress(OSError):  # other files lie there
            Path(where.path).rmdir()
    return len(parts)


class QuarantineRetention:
    """Remembers the quarantine folders of runs, and removes them when the runs' records have expired.

    Every method raises StoreUnavailable when Redis does not answer. An entry names a folder, for people and for older
    releases; a folder is removed only if the settings give the same one to the run.
    """

    def __init__(self, settings: Settings, client: Client, keys: Keys) -> None:
        self._settings = settings
        self._client: Any = client
        self._keys = keys

    def remember(self, model: str, run_id: str, folder: str) -> None:
        """Remember to remove a run's quarantine when the run's record expires."""
        self._due_in(model, run_id, folder, KEEP_RECORD_S)

    def forget(self, model: str, run_id: str, folder: str) -> None:
        """Forget to remove a run's quarantine."""
        self._client.zrem(self._keys.quarantines(model), f"{run_id} {folder}")

    def remove_due(self, model: str) -> None:
        """Remove the quarantines whose time is over. May run twice, also at the same time."""
        key = self._keys.quarantines(model)
        now, _ = self._client.time()
        due = self._client.zrangebyscore(key, 0, now, start=0, num=_PER_ROUND)
        for entry in due:
            run_id, _, folder = entry.decode(errors="replace").partition(" ")
            if folder and folder == quarantine_folder_of_id(self._settings, model, run_id):
                self._remove(model, run_id, folder)
                continue
            log.warning("quarantine.left_alone", model=model, reason=_ELSEWHERE)
            self._client.zrem(key, entry)

    def _remove(self, model: str, run_id: str, folder: str) -> None:
        ttl_s = self._client.ttl(self._keys.run(run_id))
        if ttl_s != _NO_KEY:  # the run took long, or was resumed
            self._due_in(model, run_id, folder, KEEP_RECORD_S if ttl_s == _NO_EXPIRY else max(ttl_s, 1))
            return
        try:
            removed = remove_parts(folder)
        except (OSError, BadInput) as error:
            log.warning("quarantine.not_removed", folder=folder, error=str(error))
            self._due_in(model, run_id, folder, _AGAIN_S)
            return
        self.forget(model, run_id, folder)
        if removed:
            log.info("quarantine.removed", run_id=run_id, parts=removed)

    def _due_in(self, model: str, run_id: str, folder: str, seconds: float) -> None:
        now, _ = self._client.time()
        self._client.zadd(self._keys.quarantines(model), {f"{run_id} {folder}": now + seconds})
