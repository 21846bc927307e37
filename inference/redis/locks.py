"""A lock in Redis that expires by itself when its owner dies."""

from __future__ import annotations

from redis.exceptions import LockError
from redis.lock import Lock

from inference.errors import StoreUnavailable
from inference.logs import get_logger
from inference.redis.clients import Client

log = get_logger(__name__)


class ExpiringLock(Lock):
    """redis-py's lock, which one process holds until it lets go or is silent for `lease_s`. Not taken yet.

    Methods raise StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Client, key: str, *, lease_s: float) -> None:
        super().__init__(client, key, timeout=lease_s, thread_local=False)
        self._client = client

    def do_acquire(self, token: str | bytes) -> bool:
        """Take it if nobody has it, by a script that works when Redis is out of memory."""
        return bool(self._client.run_script("lock", [self.name], [token, int(float(self.timeout or 0) * 1000)]))

    def renew(self) -> bool:
        """Hold it for another `lease_s`; False when the hold is lost."""
        try:
            return bool(self.extend(float(self.timeout or 0), replace_ttl=True))
        except LockError:
            return False

    def let_go(self) -> None:
        """Release it. A lost hold or an outage is logged only: the lock expires by itself."""
        try:
            self.release()
        except (LockError, StoreUnavailable) as error:
            log.warning("lock.not_released", lock=self.name, error=str(error))
