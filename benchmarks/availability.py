"""`forecache up` at half of its saturation while a random process of it is killed again and again."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from rig.dataset import Dataset, entity_id, make_dataset
from rig.local_up import KINDS, LocalUp
from rig.open_loop import Called, Callers
from rig.report import print_report
from rig.stack import MODEL, temporary_folder

#: of the requests, that must be computed
MISSES = 0.05
CALLERS = 32
SATURATION_S = 6
#: what an answer may come after its budget
GRACE_S = 0.05
TARGET = 0.999


@dataclass(frozen=True)
class Killed:
    """A process that was killed, and when (`time.monotonic`)."""

    kind: str
    at: float


def main() -> None:
    """Measure and print."""
    options = _options()
    chance = random.Random(options.seed)
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with LocalUp(folder, dataset, budget_ms=options.budget_ms, more_toml=_more_settings(options)) as up:
            up.forecache("batch", "run", MODEL, "--wait")
            up.forecache("features", "load", MODEL, str(dataset.table))
            rate, called, killed = asyncio.run(_measure(up, dataset, options, chance))
    report(rate, called, killed, options)


async def _measure(
    up: LocalUp, dataset: Dataset, options: argparse.Namespace, chance: random.Random
) -> tuple[float, list[Called], list[Killed]]:
    """Return the rate that was kept, every request, and every death."""

    def path() -> str:
        query = "?max_staleness_hours=0" if chance.random() < MISSES else ""
        return f"/predict/{entity_id(chance.randrange(dataset.rows))}{query}"

    trying = Callers(up.api_port, path, patience_s=10)
    await trying.go_on(CALLERS, 2)
    rate = options.rate or await trying.go_on(CALLERS, SATURATION_S) / 2
    callers = Callers(up.api_port, path, patience_s=4 * options.budget_ms / 1000)
    killed: list[Killed] = []
    killing = asyncio.create_task(_kill(up, options, chance, killed))
    await callers.keep_rate(rate, options.minutes * 60)
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    return rate, callers.called, killed


async def _kill(up: LocalUp, options: argparse.Namespace, chance: random.Random, killed: list[Killed]) -> None:
    while True:
        await asyncio.sleep(options.every_s)
        kind, process = chance.choice([one for one in up.processes() if one[0] in options.kill])
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # it was just being started again
        killed.append(Killed(kind, time.monotonic()))


def report(rate: float, called: list[Called], killed: list[Killed], options: argparse.Namespace) -> None:
    """Print the share of good answers, what was killed, and which answers failed after which death."""
    budget_s = options.budget_ms / 1000 + GRACE_S
    failed = [one for one in called if not _is_good(one, budget_s)]
    rows = []
    for kind in sorted({one.kind for one in killed}):
        deaths = [one.at for one in killed if one.kind == kind]
        its = [one for one in failed if _last_death(killed, one.at + one.took_s) == kind]
        rows.append((kind, len(deaths), len(its), _words(its, budget_s)))
    before = [one for one in failed if _last_death(killed, one.at + one.took_s) is None]
    rows.append(("before the first", 0, len(before), _words(before, budget_s)))
    share = 1 - len(failed) / len(called)
    outcomes = Counter(one.outcome for one in called if _is_good(one, budget_s))
    title = (
        f"Availability: {share:.3%} good in {options.minutes:g} min at {rate:.0f} requests/s, a process killed every "
        f"{options.every_s:g} s, {options.api_processes} API process(es), budget {options.budget_ms} ms"
    )
    figures = {
        "availability": round(share, 6), "target_met": share >= TARGET, "requests": len(called), "failed": len(failed),
        "rate": round(rate), "killed": dict(Counter(one.kind for one in killed)), "outcomes": dict(outcomes),
    }  # fmt: skip
    print_report(title, ["killed", "times", "failed after it", "how"], rows, figures, as_json=options.json)
    print("good answers: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common()))


def _is_good(one: Called, budget_s: float) -> bool:
    return one.status == 200 and one.took_s <= budget_s


def _last_death(killed: list[Killed], at: float) -> str | None:
    return next((one.kind for one in reversed(killed) if one.at <= at), None)


def _words(failed: list[Called], budget_s: float) -> str:
    counts = Counter("late" if one.status == 200 and one.took_s > budget_s else one.outcome for one in failed)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _more_settings(options: argparse.Namespace) -> str:
    processes = f"processes = {options.api_processes}\n" if options.api_processes > 1 else ""
    return f'{processes}[workers]\ngpus = "none"\nrealtime_processes = {options.realtime_processes}\n'


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every-s", type=float, default=20, help="between two deaths")
    parser.add_argument("--kill", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of processes to kill")
    parser.add_argument("--rate", type=float, help="requests a second; else half of what saturates")
    parser.add_argument("--budget-ms", type=int, default=500)
    parser.add_argument("--api-processes", type=int, default=1, help="the setting [api] processes")
    parser.add_argument("--realtime-processes", type=int, default=1, help="the setting [workers] realtime_processes")
    parser.add_argument("--rows", type=int, default=100_000, help="ids, drawn uniformly")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
