"""Samples answers that were computed on demand, so that the parity check can compute them again the other way."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import FiniteFloat

from inference.errors import StoreUnavailable
from inference.logs import get_logger
from inference.models.loaded import vector_hashes
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.schema import Block
from inference.settings import Settings
from inference.stored_data import record_from_json

log = get_logger(__name__)

#: seconds between two samples of a model in one worker, so that they cost next to nothing
EVERY_S = 1.0
_KEEP_S = 24 * 3600


@dataclass(frozen=True)
class SampledAnswer:
    """A sampled answer. `vector`: hash of its inputs; `at`: the instant that it was computed for, epoch seconds."""

    entity_id: str
    vector: str
    prediction: Any
    model_version: int
    at: FiniteFloat

    @classmethod
    def from_json(cls, text: str | bytes) -> SampledAnswer:
        """Rebuild from what `AnswerSample` wrote.

        Raises:
            Unreadable: it is not a sampled answer.
        """
        return record_from_json(cls, text, "a sampled answer")


class AnswerSample:
    """Samples an answer of each model with a parity check, at most once a second."""

    def __init__(self, settings: Settings, client: Client, keys: Keys) -> None:
        self._settings = settings
        self._client: Any = client
        self._keys = keys
        self._due: dict[str, float] = {}

    def wants(self, model: str) -> bool:
        """Whether the next answer of a model belongs into the sample."""
        parity = self._settings.models[model].parity
        return parity.every is not None and time.monotonic() >= self._due.get(model, 0.0)

    def remember(self, model: str, entity_id: str, inputs: Block, prediction: Any, version: int, at: float) -> None:
        """Add an answer to the sample; an outage loses it. `inputs`: of this one row."""
        self._due[model] = time.monotonic() + EVERY_S
        key, most = self._keys.answers(model), 2 * self._settings.models[model].parity.sample
        answer = SampledAnswer(entity_id, vector_hashes(inputs)[0], prediction, version, at)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.lpush(key, json.dumps(asdict(answer)))
        pipeline.ltrim(key, 0, most - 1)
        pipeline.expire(key, _KEEP_S)
        try:
            pipeline.execute()
        except StoreUnavailable as error:
            log.info("answer.not_sampled", model=model, error=error.message)

    def forget(self, model: str, entity_id: str) -> int:
        """Remove an entity's answers from the sample, and return their number.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        key = self._keys.answers(model)
        texts = [
            text for text in self._client.lrange(key, 0, -1) if SampledAnswer.from_json(text).entity_id == entity_id
        ]
        return sum(self._client.lrem(key, 0, text) for text in texts)


def sampled_answers(client: Client, keys: Keys, model: str, most: int) -> Sequence[SampledAnswer]:
    """Return the newest sampled answers of a model.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    texts: Any = client.lrange(keys.answers(model), 0, most - 1)
    return [SampledAnswer.from_json(text) for text in texts]
