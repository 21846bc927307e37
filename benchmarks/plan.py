"""Planning: seconds and memory from a source's footers to its chunks in Redis, before the first one can be scored."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rig.dataset import Dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.batch.plan import cut_row_groups, gather
from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from inference.sources import open_source

FEATURES = 8
FIGURES = ("chunks", "footers_s", "plan_s", "total_s", "growth_mib")
#: files, row groups in each, and chunks that each row group is cut into: 100 000 chunks
SHAPES = ((1000, 100, 1), (100, 1000, 1), (100, 10, 100))


def main() -> None:
    """Plan tables of as many row groups in fewer and in more files, each in a process of its own."""
    options = _options()
    if options.measure:
        measure(*map(Path, options.measure))
        return
    results: list[dict[str, Any]] = []
    with temporary_folder() as folder, Stack(folder / "store", Dataset(folder, 0)) as stack:
        for shape in SHAPES:
            source = folder / "-".join(map(str, shape))
            write_source(source, *shape)
            results.append({"shape": shape, **_measured(source, stack.settings_file)})
    rows = [
        ("{} files x {} row groups x {}".format(*one["shape"]), *(one[name] for name in FIGURES)) for one in results
    ]
    headings = ["", "chunks", "footers, s", "chunks to Redis, s", "together, s", "memory, MiB more"]
    figures = {"worst_total_s": max(one["total_s"] for one in results), "by_shape": results}
    print_report("Planning", headings, rows, figures, as_json=options.json)


def write_source(folder: Path, files: int, groups: int, slices: int) -> None:
    """Write tables of as many row groups, of two rows a chunk: only numbers count here."""
    folder.mkdir()
    rows = 2 * slices
    table = pa.table({"entity_id": ["e"] * rows, **{f"f{n}": [1.0] * rows for n in range(FEATURES)}})
    first = folder / "part-00000.parquet"
    with pq.ParquetWriter(first, table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table)
    for number in range(1, files):
        shutil.copyfile(first, folder / f"part-{number:05d}.parquet")


def _measured(source: Path, settings_file: Path) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--measure", str(source), str(settings_file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(source: Path, settings_file: Path) -> None:
    """Plan one source as `Planner` does, and print the figures."""
    deployment = Deployment(load_settings(settings_file), WORKER)
    ledger = deployment.ledger
    limits = {"rows_per_chunk": 2, "bytes_per_chunk": deployment.settings.models[MODEL].batch.bytes_per_chunk}
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    opened = open_source(str(source))
    footers_s = time.monotonic() - started
    pieces = cut_row_groups(opened.files, **limits)
    chunks = ledger.plans.write("bench", gather(pieces, **limits), files=opened.files)
    total_s = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "chunks": chunks,
        "footers_s": round(footers_s, 2),
        "plan_s": round(total_s - footers_s, 2),
        "total_s": round(total_s, 2),
        "growth_mib": round((peak - before) / 2**20, 1),
    }
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "SETTINGS"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
