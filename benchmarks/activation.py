"""Latency of hits and misses at a held rate before, while and after new versions of the model are activated."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import time
from collections import Counter
from typing import Any

import numpy as np
from rig.dataset import Dataset, entity_id, make_dataset
from rig.open_loop import Called, Callers
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder, wait_until

from inference.deployment import Deployment

WARM_UP_S = 3
PATIENCE_S = 20.0
#: an answer that is computed on the way out belongs to the version before: requests of this long after count as "while"
AFTERMATH_S = 1.0
HITS = ("hit_batch", "hit_realtime")
MISSES = ("computed",)
PHASES = ("before", "while", "after")
#: of p99 while a version is activated, by that before
TARGETS = {"ratio_hits_p99": 1.3, "ratio_misses_p99": 1.5}


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            _prepare(stack, options)
            called, activations = asyncio.run(_measure(stack, dataset, options))
    _report(called, activations, options)


def _prepare(stack: Stack, options: argparse.Namespace) -> None:
    workers = stack.start_workers("gpu", "maintenance")
    stack.batch_run()
    for name in workers:
        stack.stop(name)
    stack.start_workers(*["realtime"] * options.workers)
    stack.forecache("features", "load", MODEL, str(stack.dataset.table))
    stack.start_api()


async def _measure(
    stack: Stack, dataset: Dataset, options: argparse.Namespace
) -> tuple[list[Called], list[tuple[float, float]]]:
    """Return every request, and from when to when (`time.monotonic`) each new version was on its way."""
    chance = random.Random(7)
    half = dataset.rows // 2

    def path() -> str:
        # entities of one half are computed each time, those of the other are looked up
        if chance.random() < options.miss_share:
            return f"/predict/{entity_id(half + chance.randrange(half))}?max_staleness_hours=0"
        return f"/predict/{entity_id(chance.randrange(half))}"

    await Callers(stack.api_port, path, patience_s=PATIENCE_S).keep_rate(options.rate, WARM_UP_S)
    callers = Callers(stack.api_port, path, patience_s=PATIENCE_S)
    over = False
    load = asyncio.create_task(callers.keep_rate_while(options.rate, lambda _: not over))
    await asyncio.sleep(options.seconds)
    activations = []
    for version in range(2, 2 + options.activations):
        began = time.monotonic()
        await asyncio.to_thread(_activate, stack.deployment, dataset, version)
        activations.append((began, time.monotonic() + AFTERMATH_S))
    await asyncio.sleep(AFTERMATH_S + options.seconds)
    over = True
    await load
    return callers.called, activations


def _activate(deployment: Deployment, dataset: Dataset, version: int) -> None:
    """Put a version beside the others, have the workers look, and wait until it is the one that answers."""
    shutil.copytree(dataset.model / str(version - 1), dataset.model / str(version))
    deployment.registry.ask_reload(MODEL)
    wait_until(lambda: deployment.registry.active_version(MODEL) == version, f"version {version}")


def _report(called: list[Called], activations: list[tuple[float, float]], options: argparse.Namespace) -> None:
    failed = Counter(f"{one.status} {one.outcome}" for one in called if one.outcome not in (*HITS, *MISSES))
    p99 = {
        (kind, phase): _p99_ms([one for one in called if one.outcome in outcomes and _phase(one, activations) == phase])
        for kind, outcomes in (("hits", HITS), ("misses", MISSES))
        for phase in PHASES
    }
    ratios = {f"ratio_{kind}_p99": round(p99[kind, "while"] / p99[kind, "before"], 2) for kind in ("hits", "misses")}
    figures: dict[str, Any] = {
        "requests": len(called), "failed": failed.total(), "how": dict(failed), "activations": len(activations),
        "activation_s": [round(end - begin - AFTERMATH_S, 1) for begin, end in activations],
        **{f"{kind}_p99_ms_{phase}": round(value, 2) for (kind, phase), value in p99.items()},
        **ratios, "target_met": not failed and all(ratios[name] <= most for name, most in TARGETS.items()),
    }  # fmt: skip
    rows = [
        (f"{kind}, p99 ms", *(p99[kind, phase] for phase in PHASES), ratios[f"ratio_{kind}_p99"])
        for kind in ("hits", "misses")
    ]
    title = (
        f"{len(activations)} versions activated at {options.rate:g} requests/s, {options.miss_share:.0%} misses, "
        f"{options.workers} real-time workers: {failed.total()} of {len(called)} requests failed"
    )
    print_report(title, ["", *PHASES, "while / before"], rows, figures, as_json=options.json)


def _phase(one: Called, activations: list[tuple[float, float]]) -> str:
    if one.at + one.took_s < activations[0][0]:
        return "before"
    return "after" if one.at > activations[-1][1] else "while"


def _p99_ms(called: list[Called]) -> float:
    return float(np.percentile([one.took_s * 1000 for one in called], 99)) if called else float("nan")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--miss-share", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=2, help="real-time workers")
    parser.add_argument("--activations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="before the first activation, and after the last")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
