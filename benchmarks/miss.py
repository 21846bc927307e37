"""Requests per second that must be computed, against `apply_async(...).get()` in a thread pool.

Over HTTP, and once more without it: callers in one process. With `--peers` against LitServe, BentoML and Ray Serve too,
to which the features are sent; Forecache reads them from Redis and keeps the answer.
"""

from __future__ import annotations

import argparse
from typing import Any

from rig.callers import ours_per_s, plain_per_s
from rig.dataset import make_dataset, write_rows
from rig.peers import PEERS, Peer, peer_python, serving
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder
from rig.wrk import Load, Target, load, median_load, write_answers

WARM_UP_S = 2

#: by name: each target's load for each number of connections
Loads = dict[str, dict[int, Load]]


def main() -> None:
    """Measure all at each number of connections and print."""
    options = _options()
    peers = tuple(peer for peer in PEERS if peer.name in options.peers)
    for peer in peers:
        peer_python(peer.requirements)
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            loads = measure(prepare(stack), peers, stack, options)
            callers = measure_callers(stack, options)
    rows = [
        (
            name,
            connections,
            one.rps,
            one.p50_ms,
            one.p99_ms,
            f"{one.client_core:.0%} of a core",
        )
        for name, by_connections in loads.items()
        for connections, one in by_connections.items()
    ]
    rows += [(f"{name}, callers in one process", options.callers, rate, "", "", "") for name, rate in callers.items()]
    title = f"Misses: {options.rows:,} ids with stored features, every answer computed, one worker"
    headings = ["", "connections", "requests/s", "p50 ms", "p99 ms", "client"]
    figures = _figures(loads, options) | _caller_figures(callers, options)
    print_report(title, headings, rows, figures, as_json=options.json)


def prepare(stack: Stack) -> list[Target]:
    """Load the features, start a worker and a server of each kind; there is no generation to hit."""
    dataset = stack.dataset
    stack.start_workers("realtime")
    stack.start_stock_worker()
    stack.forecache("features", "load", MODEL, str(dataset.table))
    file = write_answers(stack.folder / "answers.txt", dataset.answers())
    stack.start_api()
    computed = '"outcome":"computed"'
    plain = stack.start_baseline("plain_celery_api")
    return [
        # an answer of a moment ago must not count as fresh
        Target("ours", stack.url, dataset.rows, computed, query="?max_staleness_hours=0", answers=file),
        Target("plain_celery", plain, dataset.rows, computed, answers=file),
    ]


def measure(targets: list[Target], peers: tuple[Peer, ...], stack: Stack, options: argparse.Namespace) -> Loads:
    """Return each server's median for each number of connections; the rounds take turns."""
    rounds: dict[str, dict[int, list[Load]]] = {}
    if peers:
        write_rows(stack.dataset)
    for target in targets:
        load(target, connections=max(options.connections), seconds=WARM_UP_S)
    for _ in range(options.rounds):
        for target in targets:
            _load_all(target, options, rounds)
        for peer in peers:
            with serving(peer, stack.dataset, stack.folder / "answers.txt") as target:
                load(target, connections=max(options.connections), seconds=WARM_UP_S)
                _load_all(target, options, rounds)
    return {
        name: {count: median_load(several) for count, several in by_connections.items()}
        for name, by_connections in rounds.items()
    }


def _load_all(target: Target, options: argparse.Namespace, rounds: dict[str, dict[int, list[Load]]]) -> None:
    of_target = rounds.setdefault(target.name, {count: [] for count in options.connections})
    for count in options.connections:
        of_target[count].append(load(target, connections=count, seconds=options.seconds))


def measure_callers(stack: Stack, options: argparse.Namespace) -> dict[str, float]:
    """Return each way's median rate without HTTP; the rounds take turns."""
    answers = stack.dataset.answers()
    rates: dict[str, list[float]] = {"ours": [], "plain_celery": []}
    for _ in range(options.rounds):
        for name, rate in (("ours", ours_per_s), ("plain_celery", plain_per_s)):
            measured = rate(stack.deployment, MODEL, answers, callers=options.callers, seconds=options.seconds)
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
    headline = _headline(options.connections)
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
        **_peer_figures(loads),
    }


def _peer_figures(loads: Loads) -> dict[str, Any]:
    """Return how we stand against the best peer by connections, and the latency of a lone caller against LitServe's."""
    peers = {peer.name: loads[peer.name] for peer in PEERS if peer.name in loads}
    if not peers:
        return {}
    ours = loads["ours"]
    best = {count: max(peers, key=lambda name: peers[name][count].rps) for count in ours}
    figures: dict[str, Any] = {
        "peers": {name: {str(count): _figure(one) for count, one in of.items()} for name, of in peers.items()},
        "best_peer": {str(count): name for count, name in best.items()},
        "ratio_best_peer": {
            str(count): round(ours[count].rps / peers[name][count].rps, 2) for count, name in best.items()
        },
        **{
            f"ratio_{name}": {str(count): round(ours[count].rps / one.rps, 2) for count, one in of.items()}
            for name, of in peers.items()
        },
    }
    if 1 in ours and "litserve" in peers:
        figures["ratio_p50_litserve"] = round(ours[1].p50_ms / peers["litserve"][1].p50_ms, 2)
    return figures


def _headline(connections: list[int]) -> int:
    return 32 if 32 in connections else connections[-1]


def _figure(one: Load) -> dict[str, float]:
    return {"rps": round(one.rps), "p50_ms": round(one.p50_ms, 2), "p99_ms": round(one.p99_ms, 2)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="ids, drawn uniformly")
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        help="each in turn; 32 is the headline, else the last (1 8 32; with --peers 1 32 128)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[peer.name for peer in PEERS],
        help="measure these, or LitServe, BentoML and Ray Serve; installs them once",
    )
    parser.add_argument("--callers", type=int, default=32, help="in one process, without HTTP")
    parser.add_argument("--seconds", type=float, help="of each load (6; with --peers 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    options = parser.parse_args()
    options.peers = [peer.name for peer in PEERS] if options.peers == [] else options.peers or []
    # so that a run with all peers, who are started anew for each round, takes under 8 minutes
    options.seconds = options.seconds or (3 if options.peers else 6)
    options.connections = options.connections or ([1, 32, 128] if options.peers else [1, 8, 32])
    return options


if __name__ == "__main__":
    main()
