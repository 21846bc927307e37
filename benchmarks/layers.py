"""Where the time of a miss goes: cost per layer, from spans that the real API and worker processes take.

The processes are started by their ordinary commands; a folder on their path wraps the functions that are timed
(`rig/spans`). Client, API and worker share the machine's monotonic clock, so each request's layers add up to what its
client waited. The same load without spans tells what they cost.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
from rig.dataset import make_dataset
from rig.layering import LAYERS, Layering, read_layers
from rig.report import print_report
from rig.stack import MODEL, ROOT, Stack, temporary_folder
from rig.traced import Mix, Trace, trace_load
from rig.wrk import write_answers

WARM_UP_S = 2.0


def main() -> None:
    """Load with and without spans at each number of connections and print the layers' medians."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            write_answers(folder / "answers.txt", dataset.answers())
            timed, bare = measure(stack, options)
    figures = _figures(timed, bare, options)
    headings = ["ms, by connections", *(text for count in timed for text in (f"{count}: p50", f"{count}: typical"))]
    title = f"Layers of a miss: {options.rows:,} ids with stored features, one worker"
    print_report(title, headings, _table(figures), figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> tuple[dict[int, Layering], dict[int, Trace]]:
    """Return the layers, and the load without spans, for each number of connections."""
    spans = stack.folder / "spans"
    spans.mkdir()
    stack.variables = {
        "BENCH_SPANS": str(spans),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks" / "rig" / "spans"), str(ROOT)]),
    }
    # the worker holds the model that the load of features asks for
    workers = list(stack.start_workers("realtime"))
    stack.forecache("features", "load", MODEL, str(stack.dataset.table))
    stack.start_api()
    next_row, traces = _load_all(stack, options, 0)
    for name in (*workers, "api"):
        stack.stop(name)
    timed = {count: read_layers(spans, trace) for count, trace in traces.items()}
    stack.variables = {}
    stack.start_workers("realtime")
    stack.start_api()
    _, bare = _load_all(stack, options, next_row)
    return timed, bare


def _load_all(stack: Stack, options: argparse.Namespace, row: int) -> tuple[int, dict[int, Trace]]:
    """Return the first row that was not asked for, and a trace for each number of connections."""
    traces: dict[int, Trace] = {}
    answers = stack.folder / "answers.txt"
    for count in options.connections:
        for seconds in (WARM_UP_S, options.seconds):
            mix = Mix(0, row, options.rows - 1, 1.0)
            traces[count] = trace_load(stack.url, answers, mix, connections=count, seconds=seconds)
            row = traces[count].next_miss
    return row, traces


def _figures(timed: dict[int, Layering], bare: dict[int, Trace], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": options.rows,
        "layers_p50_ms": {str(count): one.medians() for count, one in timed.items()},
        "layers_of_median_request_ms": {str(count): one.typical() for count, one in timed.items()},
        "end_to_end_p50_ms": {str(count): round(float(np.median(one.total_ms)), 3) for count, one in timed.items()},
        "without_spans_p50_ms": {
            str(count): round(float(np.median(one.latency_ms("computed"))), 3) for count, one in bare.items()
        },
        # sum of the medians by the median of the sum, and requests of which every span was found
        "explained": {str(count): round(one.explained, 3) for count, one in timed.items()},
        "complete": {str(count): round(one.complete, 4) for count, one in timed.items()},
        "rows_per_micro_batch": {str(count): round(one.rows_per_task, 1) for count, one in timed.items()},
        "rps": {str(count): round(one.rps) for count, one in bare.items()},
    }


def _table(figures: dict[str, Any]) -> list[tuple[Any, ...]]:
    counts = list(figures["layers_p50_ms"])
    both = [figures[name][count] for count in counts for name in ("layers_p50_ms", "layers_of_median_request_ms")]
    rows: list[tuple[Any, ...]] = [(name, *(layers[name] for layers in both)) for name in LAYERS]
    rows.append(("sum", *(sum(layers.values()) for layers in both)))
    for text, name in (
        ("end to end", "end_to_end_p50_ms"),
        ("end to end without spans", "without_spans_p50_ms"),
        ("sum of p50s / end to end", "explained"),
        ("rows in a micro-batch", "rows_per_micro_batch"),
        ("requests/s without spans", "rps"),
    ):
        rows.append((text, *(cell for count in counts for cell in (figures[name][count], None))))
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=150_000, help="ids, each asked for once")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32], help="each in turn")
    parser.add_argument("--seconds", type=float, default=6, help="of each load")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
