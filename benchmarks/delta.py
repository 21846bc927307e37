"""Delta runs: model time and wall time beside a full run over the same table, of which a share of the rows changed."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rig.dataset import Dataset, entity_id
from rig.heavy import SECONDS, noted, write_heavy_model
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.redis.keys import Keys, TableKind

FEATURES = 8
ROWS_PER_GROUP = 250_000
#: buckets whose rows are compared; of larger tables every n-th
COMPARED_BUCKETS = 20_000
RTOL, ATOL = 1e-5, 1e-6


def main() -> None:
    """Publish a table, change some of its rows, run over it as a delta and whole, compare what lies in Redis."""
    options = _options()
    with temporary_folder() as folder:
        dataset = Dataset(folder, options.rows)
        write_heavy_model(dataset.model, FEATURES, options.model_us)
        contract = {"features": [{"name": f"f{n}", "dtype": "float32"} for n in range(FEATURES)]}
        (dataset.model / "features.json").write_text(json.dumps(contract))
        with Stack(folder, dataset) as stack:
            stack.model_lines = "allow_code = true\nbatch.delta = true\nbatch.max_drift = 1000.0"
            stack.use_cache_port(stack.redis_port)
            stack.variables = {SECONDS: str(folder / "seconds"), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            figures = measure(stack, options)
    headings = ["", "wall, s", "model, s", "rows scored"]
    rows = [(kind, *(figures[f"{kind}_{name}"] for name in ("s", "model_s", "scored"))) for kind in ("full", "delta")]
    title = f"Delta: {options.rows:,} rows, {options.changed:.0%} changed, {options.model_us:g} µs a row in the model"
    print_report(title, headings, rows, figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a delta run and of a full run over the same table."""
    write_table(stack.dataset.table, options.rows, changed=0)
    stack.start_workers(*["gpu"] * options.processes, "maintenance")
    run(stack, "--json")
    write_table(stack.dataset.table, options.rows, changed=round(options.rows * options.changed))
    figures: dict[str, Any] = {"rows": options.rows, "model_us": options.model_us, "full_is_bound": options.bound}
    runs = {}
    for kind, flags in (("delta", ["--delta"]), ("full", [])):
        notes = Path(stack.variables[SECONDS])
        if kind == "full" and options.bound:
            notes.unlink()
        else:
            notes.write_text("")
        runs[kind] = run(stack, "--json", *flags)
        scored, seconds = noted(notes) if notes.exists() else (options.rows, options.rows * options.model_us / 1e6)
        took_s = wall_s(runs[kind]) if notes.exists() else seconds / options.processes
        figures |= {f"{kind}_s": round(took_s, 2), f"{kind}_model_s": round(seconds, 2), f"{kind}_scored": scored}
        figures |= {f"{kind}_phases": runs[kind]["phases"]}
    if runs["delta"]["full_reason"]:
        raise SystemExit(f"the delta run was a full one: {runs['delta']['full_reason']}")
    identical, compared = compare(stack, runs["delta"], runs["full"])
    return {
        "identical": identical,
        "ratio_model_time": round(figures["full_model_s"] / figures["delta_model_s"], 1),
        "ratio_wall": round(figures["full_s"] / figures["delta_s"], 2),
        "rows_compared": compared,
        "vector_bytes_per_row": round(vector_bytes(stack, runs["full"]) / options.rows, 1),
        **figures,
    }


def run(stack: Stack, *flags: str) -> dict[str, Any]:
    """Run the model over its table, wait until the run is published, and return it."""
    done: dict[str, Any] = json.loads(stack.forecache("batch", "run", MODEL, "--wait", *flags).splitlines()[-1])
    return done


def wall_s(done: dict[str, Any]) -> float:
    """Return the seconds from the request for a run to its publication."""
    created, finished = (datetime.fromisoformat(done[name]) for name in ("created_at", "finished_at"))
    return round((finished - created).total_seconds(), 2)


def compare(stack: Stack, delta: dict[str, Any], full: dict[str, Any]) -> tuple[bool, int]:
    """Return whether both runs have left the same ids, layout and values, and the ages of their own; and how many."""
    keys = Keys("forecache").table(TableKind.PREDICTIONS, MODEL)
    with stack.client() as client:
        manifests = [json.loads(client.hget(keys.generation(one["generation"]), "manifest")) for one in (delta, full)]
        buckets = manifests[0]["buckets"]
        if buckets != manifests[1]["buckets"]:
            return False, 0
        compared = 0
        for bucket in range(0, buckets, -(-buckets // COMPARED_BUCKETS)):
            ours, theirs = (client.hgetall(keys.bucket(one["generation"], bucket)) for one in (delta, full))
            ages = (age_of(delta), age_of(full))
            if not same_rows(ours, theirs, ages, [manifest["rows_as_of"] for manifest in manifests]):
                return False, compared
            compared += len(ours)
    return True, compared


def same_rows(
    ours: dict[bytes, bytes], theirs: dict[bytes, bytes], ages: tuple[int, int], of_all: list[int | None]
) -> bool:
    """Return whether two buckets hold the same ids and predictions, each with its run's age.

    `of_all`: of each side, the age of all rows, whatever they hold; None if each has its own.
    """
    if ours.keys() != theirs.keys():
        return False
    dtype = np.dtype([("as_of", "<u4"), ("value", "<f4")])
    one, other = (np.frombuffer(b"".join(rows[name] for name in ours), dtype) for rows in (ours, theirs))
    found = [side["as_of"] if age is None else age for side, age in zip((one, other), of_all, strict=True)]
    same_ages = all(np.all(of_side == age) for of_side, age in zip(found, ages, strict=True))
    return bool(same_ages and np.allclose(one["value"], other["value"], rtol=RTOL, atol=ATOL))


def age_of(done: dict[str, Any]) -> int:
    """Return the `as_of` of a run's rows, since the table has no event times."""
    return int(datetime.fromisoformat(done["created_at"]).timestamp())


def vector_bytes(stack: Stack, done: dict[str, Any]) -> int:
    """Return the size of what a run keeps to tell later which vectors changed."""
    folder = stack.folder / ".forecache/delta" / MODEL / done["run_id"]
    return sum(file.stat().st_size for file in folder.iterdir())


def write_table(path: Path, rows: int, *, changed: int) -> None:
    """Write the table; `changed` of its rows, evenly spread, hold other values than without."""
    numbers = np.random.default_rng(7)
    schema = pa.schema([("entity_id", pa.string()), *((f"f{n}", pa.float32()) for n in range(FEATURES))])
    step = rows // changed if changed else 0
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            place = np.arange(start, min(start + ROWS_PER_GROUP, rows))
            values = numbers.standard_normal((len(place), FEATURES), dtype=np.float32)
            if step:
                values[place % step == 0] += 1
            columns: list[Any] = [pa.array([entity_id(row) for row in place.tolist()])]
            columns += [pa.array(np.ascontiguousarray(values[:, number])) for number in range(FEATURES)]
            writer.write_table(pa.table(columns, schema=schema))
    temporary.replace(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the rows")
    parser.add_argument("--model-us", type=float, default=20.0, help="microseconds a row in the model")
    parser.add_argument("--processes", type=int, default=1, help="batch workers")
    parser.add_argument("--bound", action="store_true", help="take for the full run the least that its model may take")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
