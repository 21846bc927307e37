"""Local reader: predictions read a second in the service's own process, latency of one read, bytes an entity."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from rig.dataset import Dataset, entity_id
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from forecache import LocalReader
from inference.schema import DType, TensorSpec

FIELDS = (TensorSpec("output", DType.FLOAT32),)
WINDOW = 250_000


def main() -> None:
    """Load a generation, read it, and print."""
    options = _options()
    values = np.random.default_rng(3).standard_normal(options.rows).astype(np.float32)
    with temporary_folder() as folder, Stack(folder, Dataset(folder, options.rows)) as stack:
        publish(stack, values)
        begun = time.perf_counter()
        with LocalReader(MODEL, settings=stack.settings_file, folder=folder / "files") as reader:
            state = reader.wait_ready(120)
            load_s = time.perf_counter() - begun
            rows = np.random.default_rng(5).integers(0, options.rows, options.reads)
            single = gets(reader, rows, values)
            many = reads_of_many(reader, rows, values, options.at_once)
            while_loading = gets_while_loading(stack, reader, rows, values)
        one_get = redis_gets(stack, rows[:20_000])
    figures = {
        "rows": options.rows,
        "gets_per_s": round(single["per_s"]),
        "get_p50_us": round(single["p50_us"], 2),
        "get_p99_us": round(single["p99_us"], 2),
        "get_p99_us_while_loading": round(while_loading, 2),
        "reads_per_s": round(many),
        "bytes_per_entity": round(state.bytes / state.entities, 1),
        "load_rows_per_s": round(options.rows / load_s),
        "redis_gets_per_s": round(one_get),
        "ratio_redis": round(single["per_s"] / one_get, 1),
    }
    print_report(
        f"Local reader, {options.rows:,} float32 predictions, ids such as {entity_id(options.rows - 1)!r}",
        ["", "here", "target", "a GET of Redis"],
        [
            ("get, a second", figures["gets_per_s"], None, figures["redis_gets_per_s"]),
            ("get, p99 in µs", figures["get_p99_us"], 10, None),
            ("get, p99 in µs while a generation loads (None)", figures["get_p99_us_while_loading"], None, None),
            (f"get_many by {options.at_once:,}, reads per second of CPU", figures["reads_per_s"], 1_000_000, None),
            ("bytes an entity", figures["bytes_per_entity"], 40, None),
            ("load, rows a second", figures["load_rows_per_s"], None, None),
        ],
        figures,
        as_json=options.json,
    )


def publish(stack: Stack, values: Any) -> None:
    """Publish a generation with a prediction for each row."""
    generations = stack.deployment.predictions(MODEL).generations
    manifest = generations.begin(FIELDS, rows_expected=len(values), model_version=1, contract_hash="b", keep_s=86_400)
    for start in range(0, len(values), WINDOW):
        part = values[start : start + WINDOW]
        ids = pa.array([entity_id(start + row) for row in range(len(part))])
        generations.write(manifest, ids, {"output": part}, np.full(len(part), time.time()))
    generations.publish(manifest.number)


def gets(reader: LocalReader, rows: Any, values: Any) -> dict[str, float]:
    """Read one entity after the other; every value is checked."""
    ids = [entity_id(row) for row in rows.tolist()]
    took, wanted, wrong = np.empty(len(ids)), values[rows].tolist(), 0
    clock: Callable[[], int] = time.perf_counter_ns
    begun = clock()
    for at, one in enumerate(ids):
        sent = clock()
        answer = reader.get(one)
        took[at] = clock() - sent
        wrong += answer is None or answer.value != wanted[at]
    per_s = len(ids) / (clock() - begun) * 1e9
    if wrong:
        raise SystemExit(f"{wrong} wrong answers")
    p50, p99 = np.percentile(took, [50, 99]) / 1000
    return {"per_s": per_s, "p50_us": float(p50), "p99_us": float(p99)}


def reads_of_many(reader: LocalReader, rows: Any, values: Any, at_once: int) -> float:
    """Read many entities a call; return reads per second of this process' CPU, that of its other threads included."""
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    asked = [[entity_id(row) for row in part.tolist()] for part in parts]
    begun = time.process_time()
    answers = [reader.get_many(ids) for ids in asked]
    lists = [one.values for one in answers]
    took_s = time.process_time() - begun
    for part, one in zip(parts, lists, strict=True):
        if one != values[part].tolist():
            raise SystemExit("get_many gave a wrong answer")
    return float(len(rows) / took_s)


def gets_while_loading(stack: Stack, reader: LocalReader, rows: Any, values: Any) -> float:
    """Publish once more; return the p99 in µs of `get` until the new generation answers, misses included."""
    before = reader.state().generation
    publish(stack, values)
    ids = [entity_id(row) for row in rows[:1000].tolist()]
    took: list[int] = []
    while reader.state().generation in (before, None):
        for one in ids:
            sent = time.perf_counter_ns()
            reader.get(one)
            took.append(time.perf_counter_ns() - sent)
    return float(np.percentile(took, 99) / 1000)


def redis_gets(stack: Stack, rows: Any) -> float:
    """Return GETs a second of one blocking client: what a service would do by itself."""
    with stack.client() as client:
        client.mset({f"pred:{entity_id(row)}": b"0.123456" for row in rows.tolist()})
        begun = time.perf_counter()
        for row in rows.tolist():
            float(client.get(f"pred:{entity_id(row)}"))
        return float(len(rows) / (time.perf_counter() - begun))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="predictions of the generation")
    parser.add_argument("--reads", type=int, default=400_000, help="of each kind")
    parser.add_argument("--at-once", type=int, default=10_000, help="ids of a call of get_many")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
