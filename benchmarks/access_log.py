"""The access log: CPU time of a hit with the log on, by the same with it off."""

from __future__ import annotations

import argparse
import sys
from math import comb
from statistics import median

from rig.cpu import cpu_s
from rig.dataset import make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, free_port, http_ok, temporary_folder, wait_until
from rig.wrk import Target, load, write_answers

WARM_UP_S = 2
#: the chance that the true median lies outside its bounds
_OUTSIDE = 0.05


def main() -> None:
    """Load a process with the log and one without it in turn, and print the medians."""
    options = _options()
    with temporary_folder() as folder, Stack(folder, make_dataset(folder, options.rows)) as stack:
        targets = prepare(stack)
        used_us = measure(targets, stack, options)
        with stack.client() as client:
            sizes = {key: client.memory_usage(key) or 0 for key in client.scan_iter("*:h:*")}
    on, off = (median(used_us[name]) for name in ("on", "off"))
    ratios = sorted(one / other for one, other in zip(used_us["on"], used_us["off"], strict=True))
    ratio, bounds = median(ratios), median_bounds(ratios)
    figures = {
        "ratio_hit_cpu": round(ratio, 4),
        "on_us": round(on, 2),
        "off_us": round(off, 2),
        "bounds": [round(one, 4) for one in bounds],
        "ratios": [round(one, 3) for one in ratios],
        "redis_bytes": sum(sizes.values()),
    }
    rows = [("on", on), ("off", off), ("on by off", ratio), *zip(("at least", "at most"), bounds, strict=True)]
    print_report(
        f"Access log: {options.pairs} pairs, {options.rows:,} ids",
        ["log", "µs a hit"],
        rows,
        figures,
        as_json=options.json,
    )


def median_bounds(ordered: list[float]) -> tuple[float, float]:
    """Return the bounds within which the true median lies with 95 %, whatever the noise: those of the sign test."""
    chance, below = 0.0, 0
    while below < len(ordered) // 2 and chance + comb(len(ordered), below) / 2 ** len(ordered) <= _OUTSIDE / 2:
        chance += comb(len(ordered), below) / 2 ** len(ordered)
        below += 1
    edge = max(below - 1, 0)
    return ordered[edge], ordered[-1 - edge]


def prepare(stack: Stack) -> list[Target]:
    """Publish a generation, start both servers, and return what to load."""
    workers = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in workers:
        stack.stop(name)
    answers = stack.dataset.answers()
    file = write_answers(stack.folder / "answers.txt", answers)
    targets = []
    for name, enabled in (("on", "true"), ("off", "false")):
        port = free_port()
        stack.variables = {
            "FORECACHE_API__PORT": str(port),
            f"FORECACHE_MODELS__{MODEL.upper()}__ACCESS_LOG__ENABLED": enabled,
        }
        url = f"http://127.0.0.1:{port}"
        stack.start(name, sys.executable, "-P", "-m", "app.cli", "api")
        wait_until(lambda url=url: http_ok(f"{url}/health/ready"), f"the API with the log {name}")  # type: ignore[misc]
        targets.append(Target(name, url, stack.dataset.rows, '"cache_hit":true', answers=file))
    return targets


def measure(targets: list[Target], stack: Stack, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the microseconds of CPU time a hit of each load; each pair begins with the other one."""
    for target in targets:
        load(target, connections=options.connections, seconds=WARM_UP_S)
    used_us: dict[str, list[float]] = {target.name: [] for target in targets}
    for number in range(options.pairs):
        for target in targets if number % 2 else targets[::-1]:
            pid = stack.process_id(target.name)
            before_s = cpu_s(pid)
            seen = load(target, connections=options.connections, seconds=options.seconds)
            used_us[target.name].append((cpu_s(pid) - before_s) / (seen.rps * options.seconds) * 1e6)
    return used_us


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="ids, drawn uniformly")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--seconds", type=float, default=2, help="of each load: short, so that a pair meets the same noise"
    )
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
