"""Rows per second of a run over the same table in each format, from the request to the published generation."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
from deltalake import WriterProperties, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from rig.dataset import Dataset, make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, rows_per_s, temporary_folder

#: of the other formats' models, which are the same model
_MODEL = """
[models.{name}]
path = "{model}"
features = "{features}"
"""


def main() -> None:
    """Write the table in each format, measure, and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        formats = write_formats(dataset)
        with Stack(folder, dataset) as stack:
            with stack.settings_file.open("a") as settings:
                for name, features in formats.items():
                    settings.write(_MODEL.format(name=name, model=dataset.model, features=features))
            figures = measure(stack, ["parquet", *formats], options)
    names = ["parquet", *formats]
    rows = [(name, figures[f"{name}_rows_per_s"], figures.get(f"ratio_{name}")) for name in names]
    title = f"Sources: {options.rows:,} rows x 32 features, {options.processes} scoring process(es)"
    print_report(title, ["", "rows/s", "by Parquet"], rows, figures, as_json=options.json)


def write_formats(dataset: Dataset) -> dict[str, str]:
    """Write the table in the other formats; return name → source."""
    folder: Path = dataset.folder
    table = pq.read_table(dataset.table)
    # the formats are compared, not how their writers lay out files
    group = pq.ParquetFile(dataset.table).metadata.row_group(0).num_rows
    layout = WriterProperties(max_row_group_size=group, compression="SNAPPY")
    write_deltalake(folder / "delta", table, writer_properties=layout)
    properties = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    os.environ.update({f"PYICEBERG_CATALOG__BENCH__{name.upper()}": value for name, value in properties.items()})
    catalog = SqlCatalog("bench", **properties)
    catalog.create_namespace("lake")
    as_parquet = {"write.parquet.compression-codec": "snappy", "write.parquet.row-group-limit": str(group)}
    catalog.create_table("lake.users", schema=table.schema, properties=as_parquet).append(table)
    csv.write_csv(table, folder / "users.csv")
    return {"delta": f"delta:{folder}/delta", "iceberg": "iceberg:bench.lake.users", "csv": f"{folder}/users.csv"}


def measure(stack: Stack, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures; the formats take turns."""
    stack.start_workers(*["gpu"] * options.processes, "maintenance")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.runs):
        for name in names:
            model = MODEL if name == "parquet" else name
            run = json.loads(stack.forecache("batch", "run", model, "--wait", "--json").splitlines()[-1])
            if run["state"] != "published" or run["rows_done"] != options.rows:
                raise SystemExit(f"the run over {name} ended as {run['state']}: {run.get('error')}")
            rates[name].append(rows_per_s(run))
    middle = {name: median(of_format) for name, of_format in rates.items()}
    return {
        "rows": options.rows,
        **{f"{name}_rows_per_s": round(rate) for name, rate in middle.items()},
        **{f"ratio_{name}": round(middle[name] / middle["parquet"], 3) for name in names if name != "parquet"},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5, help="runs over each format; the median counts")
    parser.add_argument("--processes", type=int, default=2, help="scoring processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
