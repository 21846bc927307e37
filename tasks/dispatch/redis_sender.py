"""Sends task messages from the event loop itself, when the broker is Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from inference.errors import BrokerUnavailable, StoreUnavailable
from inference.logs import get_logger
from inference.protocols.json_spelling import is_heavy
from inference.redis.clients import AsyncClient
from tasks.dispatch.envelopes import Envelopes
from tasks.dispatch.sender import EXPIRES_SLACK_S

log = get_logger(__name__)


class RedisSender:
    """A lane of messages into the lists of a Redis broker; see `Lane`."""

    def __init__(self, client: AsyncClient, envelopes: Envelopes) -> None:
        self._client = client
        self._envelopes = envelopes

    async def send(
        self,
        task: str,
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        task_id: str,
        priority: int,
        timeout_s: float | None = None,
    ) -> None:
        """See `Lane.send`."""
        expires_s = None if timeout_s is None else timeout_s + EXPIRES_SLACK_S
        spell = partial(
            self._envelopes.message,
            task,
            kwargs,
            queue=queue,
            task_id=task_id,
            priority=priority,
            expires_s=expires_s,
        )
        message = await asyncio.to_thread(spell) if is_heavy(kwargs) else spell()
        command = ("LPUSH", self._envelopes.place(queue, priority), message)
        try:
            # sent again when a restarted broker closed the connection: its task may be done twice, with one result
            await self._client.exchange([command])
        except StoreUnavailable as error:
            log.warning("broker.unavailable", task=task, error=error.message)
            raise BrokerUnavailable("the broker does not answer: the task was not sent") from error
