"""Latency of everyday traffic: hits with a few misses among them, at half of the rate that saturates the service.

Misses are entities that the last run did not score; each is asked for once. The rate is held constant: a request is due
at its instant whether or not earlier ones were answered, and its latency counts from then.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rig.dataset import Dataset, make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder
from rig.traced import Mix, Trace, trace_load
from rig.wrk import write_answers

#: numbers of connections among which the saturated rate is looked for; the last is used to hold the rate
CONNECTIONS = (32, 64, 128)
WARM_UP_S = 2.0
LONE_S = 3.0
TARGET_P99_MS = 20.0


def main() -> None:
    """Find the saturated rate, hold half of it several times, and print the round whose p99 is the median."""
    options = _options()
    with temporary_folder() as folder:
        whole = make_dataset(folder, options.rows + options.misses)
        scored = Dataset(folder, options.rows)
        pq.write_table(pq.read_table(whole.table).slice(0, options.rows), scored.table)
        with Stack(folder, scored) as stack:
            prepare(stack, whole)
            lone, saturated, held = measure(stack, whole, options)
    figures = _figures(lone, saturated, held, options)
    title = f"{1 - options.miss_share:.0%} hits, {options.miss_share:.0%} misses, {options.rows:,} ids"
    headings = ["", "requests/s", "p50 ms", "p95 ms", "p99 ms", "share", "client"]
    print_report(title, headings, _table(lone, saturated, held), figures, as_json=options.json)


def prepare(stack: Stack, whole: Dataset) -> None:
    """Publish predictions of the deployment's rows, load the features of all, and start what answers."""
    workers = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in workers:
        stack.stop(name)
    stack.start_workers("realtime")
    stack.forecache("features", "load", MODEL, str(whole.table))
    write_answers(stack.folder / "answers.txt", whole.answers())
    stack.start_api()


def measure(stack: Stack, whole: Dataset, options: argparse.Namespace) -> tuple[Trace, Trace, Trace]:
    """Return misses one after the other, the fastest load without a pace, and the median of those at half its rate."""
    first_miss = options.rows

    def traced(connections: int, seconds: float, rate_rps: float = 0, share: float = options.miss_share) -> Trace:
        nonlocal first_miss
        mix = Mix(options.rows, first_miss, whole.rows - 1, share)
        answers = stack.folder / "answers.txt"
        trace = trace_load(stack.url, answers, mix, connections=connections, seconds=seconds, rate_rps=rate_rps)
        first_miss = trace.next_miss
        return trace

    traced(max(CONNECTIONS), WARM_UP_S)
    lone = traced(1, LONE_S, share=1)
    saturated = max((traced(count, options.seconds) for count in CONNECTIONS), key=lambda trace: trace.rps)
    rounds = [traced(max(CONNECTIONS), WARM_UP_S + options.seconds, saturated.rps / 2) for _ in range(options.rounds)]
    by_p99 = sorted(rounds, key=lambda trace: float(np.percentile(trace.latency_ms(after_s=WARM_UP_S), 99)))
    return lone, saturated, by_p99[(len(by_p99) - 1) // 2]


def _table(lone: Trace, saturated: Trace, held: Trace) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        ("misses, one by one", lone.rps, *_percentiles(lone), None, f"{lone.client_core:.0%} of a core"),
        ("saturated", saturated.rps, *_percentiles(saturated), None, f"{saturated.client_core:.0%} of a core"),
        ("half of it", held.rps, *_percentiles(held, after_s=WARM_UP_S), None, f"{held.client_core:.0%} of a core"),
    ]
    for outcome, share in held.shares().items():
        rows.append((f"  {outcome}", None, *_percentiles(held, outcome, after_s=WARM_UP_S), f"{share:.2%}", None))
    return rows


def _percentiles(trace: Trace, *outcomes: str, after_s: float = 0) -> tuple[float | None, ...]:
    """Return p50, p95 and p99 in ms; None for outcomes that are no predictions, whose times are not known."""
    latencies = trace.latency_ms(*outcomes, after_s=after_s)
    if not len(latencies):
        return (None, None, None)
    return tuple(float(value) for value in np.percentile(latencies, [50, 95, 99]))


def _figures(lone: Trace, saturated: Trace, held: Trace, options: argparse.Namespace) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(held.latency_ms(after_s=WARM_UP_S), [50, 95, 99]).tolist()
    lone_p50 = float(np.percentile(lone.latency_ms(), 50))
    return {
        "rows": options.rows,
        "miss_share": options.miss_share,
        "saturated_rps": round(saturated.rps),
        "wanted_rps": round(saturated.rps / 2),
        "held_rps": round(held.rps),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2),
        "target_p99_ms": TARGET_P99_MS,
        "lone_p50_ms": round(lone_p50, 2),
        "ratio_p99_lone_p50": round(p99 / lone_p50, 2),
        # a part of the latency: no connection was free, or the generator had no core
        "sent_late_p99_ms": round(float(np.percentile(held.lateness_ms(WARM_UP_S), 99)), 2),
        "outcomes": {name: round(share, 5) for name, share in held.shares().items()},
        "client_bound": [name for name, trace in (("saturated", saturated), ("half", held)) if trace.client_bound],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="ids that a run has scored, drawn uniformly")
    parser.add_argument("--misses", type=int, default=200_000, help="further ids, each asked for once")
    parser.add_argument("--miss-share", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="at half of the saturated rate")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
