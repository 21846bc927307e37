"""Ray Data's batch loop: `map_batches` with one actor that predicts and stores one JSON value per id by SETEX.

`ray_batch.py KERAS_MODEL PARQUET ROWS REDIS_URL` prints {"rows", "seconds"}. Ray is started before the clock. Each
execution starts an actor, which loads TensorFlow and the model: what one of a single row takes is taken off, so that
what is timed is the work.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import ray
import redis

from baselines.brief_store import store

#: larger than the usual loop's, which costs Ray less a row
ROWS_PER_BATCH = 16_384


class Scorer:
    """The actor: a model and a connection."""

    def __init__(self, model_file: str, redis_url: str) -> None:
        import tensorflow as tf

        self.model = tf.keras.models.load_model(model_file)
        self.client = redis.Redis.from_url(redis_url)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        ids = batch.pop("entity_id")
        predictions = self.model.predict_on_batch(np.stack(list(batch.values()), axis=1))
        store(self.client, ids.tolist(), predictions[:, 0])
        return {"rows": np.array([len(ids)])}


def main(model_file: str, table_file: str, rows: int, redis_url: str) -> None:
    """Score the first `rows` rows of the table."""
    ray.init(include_dashboard=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    score_rows(table_file, 1, model_file, redis_url)
    _, start_s = score_rows(table_file, 1, model_file, redis_url)
    done, seconds = score_rows(table_file, rows, model_file, redis_url)
    print(json.dumps({"rows": done, "seconds": seconds - start_s}))


def score_rows(table_file: str, rows: int, model_file: str, redis_url: str) -> tuple[int, float]:
    """Score so many rows; return how many there were, and the seconds that it took."""
    started = time.perf_counter()
    scored = (
        ray.data.read_parquet(table_file)
        .limit(rows)
        .map_batches(
            Scorer,
            fn_constructor_args=(model_file, redis_url),
            batch_size=ROWS_PER_BATCH,
            concurrency=1,
        )
    )
    done = int(sum(row["rows"] for row in scored.take_all()))
    return done, time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
