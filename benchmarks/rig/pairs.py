"""Pairs of loads: two servers that differ in one setting, in turn, so that both meet the same noise."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from math import comb
from statistics import median

from rig.cpu import cpu_s
from rig.stack import Stack, free_port, http_ok, wait_until
from rig.wrk import Target, load, write_answers

WARM_UP_S = 2
#: the chance that the true median lies outside its bounds
_OUTSIDE = 0.05


def prepare(stack: Stack, variables: Mapping[str, Mapping[str, str]]) -> list[Target]:
    """Publish a generation, start a server for each name with its `variables`, and return what to load."""
    workers = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in workers:
        stack.stop(name)
    answers = stack.dataset.answers()
    file = write_answers(stack.folder / "answers.txt", answers)
    targets = []
    for name, own in variables.items():
        port = free_port()
        stack.variables = {"FORECACHE_API__PORT": str(port), **own}
        url = f"http://127.0.0.1:{port}"
        stack.start(name, sys.executable, "-P", "-m", "app.cli", "api")
        wait_until(lambda url=url: http_ok(f"{url}/health/ready"), f"the API {name}")  # type: ignore[misc]
        targets.append(Target(name, url, stack.dataset.rows, '"cache_hit":true', answers=file))
    return targets


def measure(targets: list[Target], stack: Stack, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the microseconds of CPU time a hit of each load; the orders of the targets take turns."""
    for target in targets:
        load(target, connections=options.connections, seconds=WARM_UP_S)
    used_us: dict[str, list[float]] = {target.name: [] for target in targets}
    orders = itertools.cycle(itertools.permutations(targets))
    for order in itertools.islice(orders, options.pairs):
        for target in order:
            pid = stack.process_id(target.name)
            before_s = cpu_s(pid)
            seen = load(target, connections=options.connections, seconds=options.seconds)
            used_us[target.name].append((cpu_s(pid) - before_s) / (seen.rps * options.seconds) * 1e6)
    return used_us


def compare(ones: list[float], others: list[float]) -> tuple[float, tuple[float, float], list[float]]:
    """Return the median of the ratios of pairs, the bounds within which it lies with 95 %, and all of them."""
    ratios = sorted(one / other for one, other in zip(ones, others, strict=True))
    return median(ratios), _median_bounds(ratios), ratios


def _median_bounds(ordered: list[float]) -> tuple[float, float]:
    """Return the bounds by the sign test, which hold whatever the noise."""
    chance, below = 0.0, 0
    while below < len(ordered) // 2 and chance + comb(len(ordered), below) / 2 ** len(ordered) <= _OUTSIDE / 2:
        chance += comb(len(ordered), below) / 2 ** len(ordered)
        below += 1
    edge = max(below - 1, 0)
    return ordered[edge], ordered[-1 - edge]


def add_options(parser: argparse.ArgumentParser, *, pairs: int) -> None:
    """Add the options of the load."""
    parser.add_argument("--rows", type=int, default=200_000, help="ids, drawn uniformly")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--seconds", type=float, default=2, help="of each load: short, so that a pair meets the same noise"
    )
    parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
