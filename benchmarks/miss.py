"""Requests per second that must be computed, against `apply_async(...).get()` in a thread pool.

Over HTTP, and once more without it: callers in one process.
"""

from __future__ import annotations

import argparse
from typing import Any

from rig.callers import ours_per_s, plain_per_s
from rig.dataset import make_dataset
from rig.deployment import MODEL, Deployment, temporary_folder
from rig.report import print_report
from rig.wrk import Load, Target, load, median_load, write_answers

WARM_UP_S = 2

#: by name: each target's load for each number of connections
Loads = dict[str, dict[int, Load]]


def main() -> None:
    """Measure both at each number of connections and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Deployment(folder, dataset) as deployment:
            loads = measure(prepare(deployment), options)
            callers = measure_callers(deployment, options)
    rows = [
        (
            f"{name}, {connections} connections",
            one.rps,
            one.p50_ms,
            one.p99_ms,
            f"{one.client_core:.0%} of a core",
        )
        for name, by_connections in loads.items()
        for connections, one in by_connections.items()
    ]
    rows += [(f"{name}, {options.callers} callers in one process", rate, "", "", "") for name, rate in callers.items()]
    title = f"Misses: {options.rows:,} ids with stored features, every answer computed, one worker"
    headings = ["", "requests/s", "p50 ms", "p99 ms", "client"]
    figures = _figures(loads, options) | _caller_figures(callers, options)
    print_report(title, headings, rows, figures, as_json=options.json)


def prepare(deployment: Deployment) -> list[Target]:
    """Load the features, start a worker and a server of each kind; there is no generation to hit."""
    dataset = deployment.dataset
    deployment.start_workers("realtime")
    deployment.start_stock_worker()
    deployment.forecache("features", "load", MODEL, str(dataset.table))
    file = write_answers(deployment.folder / "answers.txt", dataset.answers())
    deployment.start_api()
    computed = '"outcome":"computed"'
    plain = deployment.start_baseline("plain_celery_api")
    return [
        # an answer of a moment ago must not count as fresh
        Target("ours", deployment.url, dataset.rows, computed, query="?max_staleness_hours=0", answers=file),
        Target("plain_celery", plain, dataset.rows, computed, answers=file),
    ]


def measure(targets: list[Target], options: argparse.Namespace) -> Loads:
    """Return each target's median for each number of connections; the rounds take turns."""
    for target in targets:
        load(target, connections=max(options.connections), seconds=WARM_UP_S)
    loads: Loads = {target.name: {} for target in targets}
    for connections in options.connections:
        rounds: dict[str, list[Load]] = {target.name: [] for target in targets}
        for _ in range(options.rounds):
            for target in targets:
                rounds[target.name].append(load(target, connections=connections, seconds=options.seconds))
        for name, several in rounds.items():
            loads[name][connections] = median_load(several)
    return loads


def measure_callers(deployment: Deployment, options: argparse.Namespace) -> dict[str, float]:
    """Return each way's median rate without HTTP; the rounds take turns."""
    answers = deployment.dataset.answers()
    rates: dict[str, list[float]] = {"ours": [], "plain_celery": []}
    for _ in range(options.rounds):
        for name, rate in (("ours", ours_per_s), ("plain_celery", plain_per_s)):
            measured = rate(deployment.services, MODEL, answers, callers=options.callers, seconds=options.seconds)
            rates[name].append(measured)
    return {name: sorted(several)[(len(several) - 1) // 2] for name, several in rates.items()}


def _caller_figures(callers: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "callers": options.callers,
        "ours_callers_per_s": round(callers["ours"]),
        "plain_celery_callers_per_s": round(callers["plain_celery"]),
        "ratio_plain_celery_callers": round(callers["ours"] / callers["plain_celery"], 2),
    }


def _figures(loads: Loads, options: argparse.Namespace) -> dict[str, Any]:
    headline = options.connections[-1]
    ours, plain = loads["ours"][headline], loads["plain_celery"][headline]
    every = [(name, count, one) for name, per in loads.items() for count, one in per.items()]
    return {
        "rows": options.rows,
        "connections": headline,
        "ours_rps": round(ours.rps),
        "plain_celery_rps": round(plain.rps),
        "ratio_plain_celery": round(ours.rps / plain.rps, 2),
        "ours_p50_ms": round(ours.p50_ms, 2),
        "plain_celery_p50_ms": round(plain.p50_ms, 2),
        "by_connections": {f"{name}-{count}": _figure(one) for name, count, one in every},
        "client_bound": [f"{name}-{count}" for name, count, one in every if one.client_bound],
    }


def _figure(one: Load) -> dict[str, float]:
    return {"rps": round(one.rps), "p50_ms": round(one.p50_ms, 2), "p99_ms": round(one.p99_ms, 2)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="ids, drawn uniformly")
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        help="each in turn; the last is the headline",
    )
    parser.add_argument("--callers", type=int, default=32, help="in one process, without HTTP")
    parser.add_argument("--seconds", type=float, default=6, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
