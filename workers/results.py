"""Where real-time workers put results: Celery's Redis backend with one round trip for a result instead of two."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import orjson
from celery import states
from celery.backends.redis import RedisBackend

from inference.redis.pipes import Pipe


class RealtimeResults(RedisBackend):  # type: ignore[misc]  # celery has no types
    """Stores and publishes as Celery does, and what it stores is the same.

    Celery reads first, so that nothing replaces a success. Here a success is written at once (each attempt has an
    id of its own, and of two successes either will do), while all else still looks first.
    """

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        if state != states.SUCCESS:
            return super()._store_result(task_id, result, state, traceback, request, **options)
        meta = self._get_result_meta(result, state, traceback, request)
        meta["task_id"] = task_id
        self.ensure(self._write, (self.get_key_for_task(task_id), orjson.dumps(meta)))
        return result

    @cached_property
    def _pipe(self) -> Pipe:
        return Pipe(self.client)

    def _write(self, key: bytes, payload: bytes) -> None:
        self._pipe.send([("SETEX", key, self.expires, payload), ("PUBLISH", key, payload)])
