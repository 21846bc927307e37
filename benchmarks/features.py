"""Features: how fast a table is loaded, what an entity takes of Redis, and what reading and vectorising some takes.

Compared with one Redis hash per entity, as one would write it by hand, and with `--feast` with Feast's
`get_online_features`, all over the same Redis and rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import redis
from rig.dataset import FEATURES, Dataset, entity_id, write_table
from rig.peers import SERVERS, peer_environment, peer_python
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.features import Feature, FeatureContract, FeatureGatherer, Vectoriser, load_features
from inference.schema import DType, Signature, TensorSpec
from inference.store import Table

NAMES = [f"f{number:02d}" for number in range(FEATURES)]
SIZES = (1, 256)
WINDOW = 10_000
#: look-ups that are not timed, of each size
WARM_UP = 20
#: hashes whose values are no longer than this are kept compact, which 32 float32 are not by default (64); the name is
#: that of Redis 6.2, which later versions know too
COMPACT, COMPACT_BYTES = "hash-max-ziplist-value", 192
PLAIN_DATABASE, FEAST_DATABASE = 2, 3


def main() -> None:
    """Measure, check the values, and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = Dataset(folder, options.rows)
        write_table(dataset.table, options.rows)
        with Stack(folder / "stack", dataset) as stack:
            figures = measure(stack, options)
    rows = [
        (title, figures[f"{name}_rows_per_s"], figures[f"{name}_bytes_per_entity"],
         *(figures[f"{name}_p50_ms"][str(size)] for size in SIZES))
        for name, title in (
            ("ours", "Forecache"), ("compact", f"the same, {COMPACT} {COMPACT_BYTES}"),
            ("plain", "a hash per entity"), ("feast", "Feast"),
        )
        if f"{name}_rows_per_s" in figures
    ]  # fmt: skip
    heads = ["", "loaded/s", "bytes/entity", *(f"p50 ms, {size}" for size in SIZES)]
    print_report(
        f"Features: {options.rows:,} entities x {FEATURES} float32", heads, rows, figures, as_json=options.json
    )


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all."""
    values = _values(stack.dataset.table)
    figures = ours(stack, values, options)
    with stack.client() as client:
        before = client.config_get(COMPACT)[COMPACT]
        client.config_set(COMPACT, COMPACT_BYTES)
        compact = ours(stack, values, options)
        client.config_set(COMPACT, before)
    figures |= {name.replace("ours", "compact"): figure for name, figure in compact.items()}
    figures |= plain(stack, values, options)
    if options.feast:
        figures |= feast(stack, values, options)
        ratios = {str(n): figures["feast_p50_ms"][str(n)] / figures["ours_p50_ms"][str(n)] for n in SIZES}
        # the worse of the two counts
        figures["ratio_feast"] = round(min(ratios.values()), 2)
        figures["ratio_feast_by_size"] = {size: round(ratio, 2) for size, ratio in ratios.items()}
    return {"rows": options.rows, **figures}


def ours(stack: Stack, values: npt.NDArray[np.float32], options: argparse.Namespace) -> dict[str, Any]:
    """Load the table as `features load` does, and read as a real-time worker does, up to the model's input tensor."""
    contract = FeatureContract(tuple(Feature(name, DType.FLOAT32) for name in NAMES))
    signature = Signature((TensorSpec("input", DType.FLOAT32, (FEATURES,)),), (TensorSpec("output", DType.FLOAT32),))
    vectoriser = Vectoriser(contract, signature)
    table = stack.deployment.features(MODEL)
    rates = [_load(table, vectoriser, stack.dataset) for _ in range(options.loads)]
    with stack.client() as client:  # the last load's, beside the one before it
        client.flushdb()
        before = _used(client)
        rates.append(_load(table, vectoriser, stack.dataset))
        used = _used(client) - before
    gatherer = FeatureGatherer(table, vectoriser)

    def read(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        gathered = gatherer.gather([entity_id(row) for row in rows], now=time.time())
        return vectoriser.inputs(gathered.rows.usable())["input"]

    return {
        "ours_rows_per_s": round(median(rates)),
        "ours_bytes_per_entity": round(used / options.rows, 1),
        "ours_p50_ms": _timed(read, values, options.lookups),
    }


def _load(table: Table, vectoriser: Vectoriser, dataset: Dataset) -> float:
    started = time.perf_counter()
    load_features(table, str(dataset.table), vectoriser, entity_column="entity_id", keep_s=86_400)
    return dataset.rows / (time.perf_counter() - started)


def plain(stack: Stack, values: npt.NDArray[np.float32], options: argparse.Namespace) -> dict[str, Any]:
    """One hash per entity with a field per feature, in pipelines; read by HMGET and made an array."""
    rows = min(options.rows, options.plain_rows)
    with stack.client(PLAIN_DATABASE) as client:
        before, started = _used(client), time.perf_counter()
        for start in range(0, rows, WINDOW):
            pipeline = client.pipeline(transaction=False)
            for row, listed in enumerate(values[start : min(start + WINDOW, rows)].tolist(), start):
                pipeline.hset(f"features:{entity_id(row)}", mapping=dict(zip(NAMES, listed, strict=True)))
            pipeline.execute()
        rate, used = rows / (time.perf_counter() - started), _used(client) - before

        def read(wanted: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
            pipeline = client.pipeline(transaction=False)
            for row in wanted:
                pipeline.hmget(f"features:{entity_id(row)}", NAMES)
            return np.array(pipeline.execute(), np.float32)

        p50_ms = _timed(read, values[:rows], options.lookups)
        client.flushdb()
    return {"plain_rows_per_s": round(rate), "plain_bytes_per_entity": round(used / rows, 1), "plain_p50_ms": p50_ms}


def feast(stack: Stack, values: npt.NDArray[np.float32], options: argparse.Namespace) -> dict[str, Any]:
    """Feast, in an environment of its own."""
    rows = min(options.rows, options.feast_rows)
    answers = stack.folder / "feast.json"
    done = subprocess.run(
        [str(peer_python("feast")), str(SERVERS / "feast_features.py"), str(stack.dataset.table), str(rows),
         f"127.0.0.1:{stack.redis_port},db={FEAST_DATABASE}", str(answers), json.dumps(SIZES),
         str(options.lookups)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=stack.folder, env=peer_environment(),
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    for answer in json.loads(answers.read_text()).values():
        wanted = values[[int(name.removeprefix("user_")) for name in answer["entity_id"]]]
        _check(np.array([answer[name] for name in NAMES], np.float32).T, wanted)
    return {
        "feast_rows_per_s": round(told["rows"] / told["load_s"]),
        "feast_bytes_per_entity": round(told["bytes_per_entity"], 1),
        "feast_p50_ms": {size: round(seconds * 1000, 4) for size, seconds in told["p50_s"].items()},
    }


def _timed(
    read: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.float32]], values: npt.NDArray[np.float32], lookups: int
) -> dict[str, float]:
    """Return by size the median of what look-ups of entities took, in milliseconds; all values are checked."""
    p50_ms = {}
    for size in SIZES:
        took = []
        for rows in np.random.default_rng(5).integers(0, len(values), (lookups + WARM_UP, size)):
            started = time.perf_counter()
            found = read(rows)
            took.append(time.perf_counter() - started)
            _check(found, values[rows])
        p50_ms[str(size)] = round(median(took[WARM_UP:]) * 1000, 4)
    return p50_ms


def _check(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> None:
    if not np.array_equal(found, wanted):
        raise SystemExit("features were read that are not those of the table")


def _values(table: Path) -> npt.NDArray[np.float32]:
    columns: Sequence[Any] = pq.read_table(table, columns=NAMES).columns
    return np.stack([column.to_numpy() for column in columns], axis=1)


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="entities that ours loads")
    parser.add_argument("--loads", type=int, default=2, help="loads before the one whose memory is measured")
    parser.add_argument("--lookups", type=int, default=1000, help="look-ups of each size")
    parser.add_argument("--plain-rows", type=int, default=100_000, help="entities of the hashes by hand")
    parser.add_argument("--feast-rows", type=int, default=100_000, help="entities that Feast loads")
    parser.add_argument("--feast", action="store_true", help="Feast too, installed beside once")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
