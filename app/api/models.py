"""What each model's versions take and give, at most a second old; tensors computed while the client waits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import Request

from app.api.requests import ClientWatch
from inference.errors import NotFound, StoreUnavailable, quoted
from inference.models import VersionRecord
from inference.protocols.tensors import most_rows
from inference.schema import Block
from inference.serving import ModelCall, Outputs, PredictionService
from inference.serving.model_service import TableReader

#: a worker's knowledge of the active version may be as old
MAX_AGE_S = 1.0
STORE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class ModelCard:
    """A model's versions, good and refused ones, and the active version; `active` None: there is none yet.

    `labels`: name → version.
    """

    active: int | None
    versions: Mapping[int, VersionRecord]
    labels: Mapping[str, int] = field(default_factory=dict)

    def ready(self, version: int | None) -> VersionRecord | None:
        """Return the record of a good version, None if there is no such version; `version` None: the active one."""
        number = self.active if version is None else version
        record = None if number is None else self.versions.get(number)
        return record if record is not None and record.state == "ready" else None


class ModelCards:
    """Reads cards and keeps them for a second. Concurrent callers share one read.

    It does not keep the card of a model without an active version: a client that heard that the model is ready must
    find it ready.
    """

    def __init__(
        self,
        readers: Mapping[str, TableReader],
        records: Callable[[str], Awaitable[Mapping[int, VersionRecord]]],
    ) -> None:
        self._readers = readers
        self._records = records
        self._known: dict[str, tuple[float, ModelCard]] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, model: str) -> ModelCard:
        """Return a model's card.

        Raises:
            NotFound: the settings have no such model.
            StoreUnavailable: Redis did not answer in time.
        """
        if model not in self._readers:
            raise NotFound(f"no model {quoted(model)}")
        known = self._fresh(model)
        if known is not None:
            return known
        async with self._reading[model]:
            return self._fresh(model) or await self._read(model)

    def _fresh(self, model: str) -> ModelCard | None:
        known = self._known.get(model)
        if known is None or known[1].active is None:
            return None
        return known[1] if asyncio.get_running_loop().time() - known[0] < MAX_AGE_S else None

    async def _read(self, model: str) -> ModelCard:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                pointer = await self._readers[model].pointer()
                card = ModelCard(pointer.active_version, await self._records(model), pointer.labels.versions)
        except TimeoutError as error:
            raise StoreUnavailable("the cache Redis does not answer") from error
        self._known[model] = (asyncio.get_running_loop().time(), card)
        return card


async def compute(
    request: Request,
    service: PredictionService,
    model: str,
    inputs: Block,
    call: ModelCall,
    timeout_s: float | None = None,
) -> Outputs | None:
    """Return a model's outputs for tensors; None if the client has hung up meanwhile.

    `timeout_s`: the client's own budget; None: the model's.

    Raises:
        RateLimited, TooHeavy: as `AccessControl.charge` says of the rows.
        ForecacheError: as `PredictionService.predict_tensors` says.
    """
    request.app.access.charge(request.scope, rows=most_rows(inputs))
    with ClientWatch(request.receive):
        return await service.predict_tensors(model, inputs, call, timeout_s=timeout_s)
    return None
