"""The usual batch loop: Keras' `model.predict` by 1 000 rows, one JSON value per id by SETEX in a pipeline.

`brief_batch.py KERAS_MODEL PARQUET ROWS REDIS_URL` prints {"rows", "seconds"}; imports are not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pyarrow.parquet as pq
import redis
import tensorflow as tf

from baselines.brief_store import store

ROWS_PER_STEP = 1000


def score_all(model: Any, client: redis.Redis, ids: list[str], features: Any) -> None:
    """Predict and store every row."""
    for start in range(0, len(ids), ROWS_PER_STEP):
        predictions = model.predict(features[start : start + ROWS_PER_STEP], verbose=0)
        store(client, ids[start : start + ROWS_PER_STEP], predictions[:, 0])


def main(model_file: str, table_file: str, rows: int, redis_url: str) -> None:
    """Score the first `rows` rows of the table."""
    model = tf.keras.models.load_model(model_file)
    frame = next(pq.ParquetFile(table_file).iter_batches(batch_size=rows)).to_pandas()
    ids, features = frame["entity_id"].tolist(), frame.drop(columns="entity_id").to_numpy()
    model.predict(features[:ROWS_PER_STEP], verbose=0)
    with redis.Redis.from_url(redis_url) as client:
        client.ping()
        started = time.perf_counter()
        score_all(model, client, ids, features)
        seconds = time.perf_counter() - started
    print(json.dumps({"rows": len(ids), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
