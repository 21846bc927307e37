"""What a row of a table takes in Redis, by asking Redis about some of its buckets."""

from __future__ import annotations

import redis

from inference.keys import TableKeys
from inference.store.records import Manifest

_SAMPLED_BUCKETS = 16


def measured_row_bytes(client: redis.Redis, keys: TableKeys, manifest: Manifest) -> float | None:
    """Return the bytes that a row of a generation takes, over 16 of its buckets; None when they are empty.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    step = max(manifest.buckets // _SAMPLED_BUCKETS, 1)
    with client.pipeline(transaction=False) as pipe:
        for bucket in range(0, manifest.buckets, step):
            pipe.hlen(keys.bucket(manifest.number, bucket))
            pipe.memory_usage(keys.bucket(manifest.number, bucket), samples=0)
        answers = pipe.execute()
    rows, taken = sum(answers[::2]), sum(size or 0 for size in answers[1::2])
    return taken / rows if rows else None
