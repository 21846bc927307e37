"""Feast over the same Redis and rows: what a look-up of online features takes, and what a row takes of Redis.

`feast_features.py TABLE ROWS ADDRESS ANSWERS SIZES LOOKUPS`: the first ROWS rows of a Parquet table whose column
`entity_id` names them and whose other columns are float32 go to the Redis at ADDRESS (`host:port,db=N`). Prints
{"rows", "load_s", "bytes_per_entity", "p50_s": {size: seconds}}, and writes what it answered for the last look-up of
each size to ANSWERS, for the values to be checked. Only `get_online_features` is timed, not making arrays of it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

os.environ.setdefault("FEAST_USAGE", "False")

import numpy as np
import pyarrow.parquet as pq
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

VIEW, WINDOW = "features", 10_000
#: look-ups that are not timed, of each size
WARM_UP = 20


def main(table_file: str, rows: int, address: str, answers_file: str, sizes: Sequence[int], lookups: int) -> None:
    """Load, look up, and print."""
    table = pq.read_table(table_file).slice(0, rows)
    names = [name for name in table.column_names if name != "entity_id"]
    store = open_store(table_file, address, names)
    host, _, rest = address.partition(":")
    port, _, database = rest.partition(",db=")
    client = redis.Redis(host=host, port=int(port), db=int(database))
    before = int(client.info("memory")["used_memory"])
    started = time.perf_counter()
    load(store, table)
    load_s = time.perf_counter() - started
    used = int(client.info("memory")["used_memory"]) - before
    ids = table.column("entity_id").to_pylist()
    timed, answers = {}, {}
    for size in sizes:
        timed[size], answers[size] = look_up(store, ids, names, size, lookups)
    with open(answers_file, "w") as file:  # noqa: PTH123 - as short as it gets
        json.dump(answers, file)
    print(json.dumps({"rows": rows, "load_s": load_s, "bytes_per_entity": used / rows, "p50_s": timed}))


def open_store(table_file: str, address: str, names: Sequence[str]) -> FeatureStore:
    """Return a feature store whose registry lies in a temporary file and never expires."""
    registry = os.path.join(tempfile.mkdtemp(), "registry.db")  # noqa: PTH118 - see above
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry={"path": registry, "cache_ttl_seconds": 0},
            online_store={"type": "redis", "connection_string": address},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="entity_id", value_type=ValueType.STRING)
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        ttl=timedelta(days=1),
        schema=[Field(name=name, dtype=Float32) for name in names],
        source=FileSource(path=os.path.abspath(table_file), timestamp_field="event_timestamp"),  # noqa: PTH100
    )
    store.apply([entity, view])
    return store


def load(store: FeatureStore, table: Any) -> None:
    """Write the table in windows."""
    for start in range(0, len(table), WINDOW):
        frame = table.slice(start, WINDOW).to_pandas()
        frame["event_timestamp"] = datetime.now(UTC)
        store.write_to_online_store(VIEW, df=frame)


def look_up(
    store: FeatureStore, ids: Sequence[str], names: Sequence[str], size: int, lookups: int
) -> tuple[float, dict[str, Any]]:
    """Return the median of what looking up so many entities took, in seconds, and the last answer."""
    wanted = [f"{VIEW}:{name}" for name in names]
    drawn = np.random.default_rng(5).integers(0, len(ids), (lookups + WARM_UP, size))
    took = []
    for rows in drawn:
        entity_rows = {"entity_id": [ids[row] for row in rows]}
        started = time.perf_counter()
        answer = store.get_online_features(features=wanted, entity_rows=entity_rows)
        took.append(time.perf_counter() - started)
    return median(took[WARM_UP:]), answer.to_dict()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], json.loads(sys.argv[5]), int(sys.argv[6]))
