"""The rows that runs left out end with the runs' records."""

from __future__ import annotations

from typing import Any

from inference.batch.folders import quarantine_of_id
from inference.batch.ledger import KEEP_RECORD_S
from inference.batch.quarantine import remove_parts
from inference.errors import BadInput
from inference.logs import get_logger
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings

log = get_logger(__name__)

#: what cannot be removed now is tried again after this long
_AGAIN_S = 86400.0
_PER_ROUND = 100
#: what TTL says of a key that does not exist, or does not expire
_NO_KEY, _NO_EXPIRY = -2, -1
_ELSEWHERE = "the entry names no folder that quarantine_path gives to one of the model's runs: remove it by hand"


class Retention:
    """Remembers where runs may leave rows out, and removes those of runs of which nothing is known any more.

    Every method raises StoreUnavailable when Redis does not answer. Entries name a folder for people and for older
    releases; what is removed is the folder that the settings give to the run.
    """

    def __init__(self, settings: Settings, client: Client, keys: Keys) -> None:
        self._settings = settings
        self._client: Any = client
        self._keys = keys

    def remember(self, model: str, run_id: str, folder: str) -> None:
        """Have a run's quarantine removed when its record has ended."""
        self._due_in(model, run_id, folder, KEEP_RECORD_S)

    def forget(self, model: str, run_id: str, folder: str) -> None:
        """Let a quarantine be."""
        self._client.zrem(self._keys.quarantines(model), f"{run_id} {folder}")

    def remove_due(self, model: str) -> None:
        """Remove what has been kept for long enough. May run twice, also at the same time."""
        key = self._keys.quarantines(model)
        now, _ = self._client.time()
        due = self._client.zrangebyscore(key, 0, now, start=0, num=_PER_ROUND)
        for entry in due:
            run_id, _, folder = entry.decode(errors="replace").partition(" ")
            if folder and folder == quarantine_of_id(self._settings, model, run_id):
                self._remove(model, run_id, folder)
                continue
            log.warning("quarantine.left_alone", model=model, reason=_ELSEWHERE)
            self._client.zrem(key, entry)

    def _remove(self, model: str, run_id: str, folder: str) -> None:
        ttl_s = self._client.ttl(self._keys.run(run_id))
        if ttl_s != _NO_KEY:  # it lasted longer than most, or was taken up again
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
