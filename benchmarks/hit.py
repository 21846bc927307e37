"""Requests per second that are answered from the store, against the usual endpoint and a bare one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from baselines.brief_store import store
from rig.cpu import cpu_s
from rig.dataset import entity_id, make_dataset
from rig.report import print_report
from rig.stack import Stack, temporary_folder
from rig.wrk import Load, Target, load, write_answers

WARM_UP_S = 2
_PROCESSES = {"ours": "api", "brief": "brief_api", "bare": "bare_api"}


@dataclass(frozen=True)
class Measured:
    """A load, and the microseconds of CPU time that the server took for each request of it."""

    load: Load
    server_us: float


def main() -> None:
    """Measure all three in turn, several rounds, and print the medians."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            targets = prepare(stack)
            measured = measure(targets, stack, options)
    figures = _figures(measured, options)
    rows = [
        (name, one.load.rps, one.load.p50_ms, one.load.p99_ms, one.server_us, _bound(one.load))
        for name, one in measured.items()
    ]
    title = f"Hits: {options.rows:,} ids, {options.connections} connections, one server process each"
    print_report(
        title, ["", "requests/s", "p50 ms", "p99 ms", "server µs", "client"], rows, figures, as_json=options.json
    )


def prepare(stack: Stack) -> list[Target]:
    """Publish a generation, start the three servers, and return what to load."""
    dataset = stack.dataset
    workers = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in workers:  # a hit needs none of them, and the core is the server's
        stack.stop(name)
    answers = dataset.answers()
    _store_like_the_brief(stack, answers.tolist())
    file = write_answers(stack.folder / "answers.txt", answers)
    stack.start_api()
    hit = '"cache_hit":true'
    return [
        Target("ours", stack.url, dataset.rows, hit, answers=file),
        Target("brief", stack.start_baseline("brief_api"), dataset.rows, hit, answers=file),
        Target("bare", stack.start_baseline("bare_api"), dataset.rows, hit),
    ]


def measure(targets: list[Target], stack: Stack, options: argparse.Namespace) -> dict[str, Measured]:
    """Return each target's median over the rounds; the rounds take turns, so a noisy moment hits all."""
    for target in targets:
        load(target, connections=options.connections, seconds=WARM_UP_S)
    rounds: dict[str, list[Measured]] = {target.name: [] for target in targets}
    for _ in range(options.rounds):
        for target in targets:
            pid = stack.process_id(_PROCESSES[target.name])
            before_s = cpu_s(pid)
            seen = load(target, connections=options.connections, seconds=options.seconds)
            used_s = cpu_s(pid) - before_s
            rounds[target.name].append(Measured(seen, used_s / (seen.rps * options.seconds) * 1e6))
    return {name: sorted(all_, key=lambda one: one.load.rps)[(len(all_) - 1) // 2] for name, all_ in rounds.items()}


def _store_like_the_brief(stack: Stack, answers: list[float]) -> None:
    with stack.client() as client:
        for start in range(0, len(answers), 10_000):
            part = answers[start : start + 10_000]
            store(client, [entity_id(start + number) for number in range(len(part))], part)


def _figures(measured: dict[str, Measured], options: argparse.Namespace) -> dict[str, Any]:
    loads = {name: one.load for name, one in measured.items()}
    ours = loads["ours"]
    return {
        "rows": options.rows,
        "connections": options.connections,
        "ours_rps": round(ours.rps),
        "brief_rps": round(loads["brief"].rps),
        "bare_rps": round(loads["bare"].rps),
        "ratio_brief": round(ours.rps / loads["brief"].rps, 2),
        "ratio_bare": round(ours.rps / loads["bare"].rps, 3),
        "ours_p50_ms": round(ours.p50_ms, 3),
        "ours_p99_ms": round(ours.p99_ms, 3),
        **{f"{name}_cpu_us": round(one.server_us, 1) for name, one in measured.items()},
        "client_bound": [name for name, one in loads.items() if one.client_bound],
    }


def _bound(one: Load) -> str:
    return "client-bound" if one.client_bound else f"{one.client_core:.0%} of a core"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="ids, drawn uniformly")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
