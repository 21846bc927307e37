"""The simulator: requests a second that it replays, beside a loop over every request; both must count the same."""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from rig.report import print_report

from inference.economics.histories import OUTCOMES
from inference.economics.policies import DEFAULTS, Policy, parse_policy
from inference.economics.replay import Replay, Speeds
from inference.economics.traces import Requests, Trace, draw_trace
from inference.outcomes import Outcome
from inference.serving.answers import Freshness, answer_stored
from inference.store import Entry, Origin

T = TypeVar("T")
POLICIES = (
    "every=24h ttl=26h keep=7d run=1ms",
    "every=24h ttl=12h run=1ms",
    "every=never",
    "every=24h ttl=12h run=1ms realtime_ttl=5m stale_while_revalidate=10m",
)
SPEEDS = Speeds(rows_per_s=10_000, startup_s=0, worker_rps=100)
DAYS = 30


def main() -> None:
    """Replay a trace by both, print their rates, and refuse to print one if they disagree."""
    options = _options()
    trace = draw_trace(exponent=1.0, entities=options.entities, requests=options.requests, span_s=DAYS * 86_400)
    part = Trace(Requests(*(each[: options.loop] for each in trace.requests)), trace.entities)
    rows, ours, theirs = [], [], []
    for text in POLICIES:
        policy = parse_policy(text, Policy.of("", DEFAULTS))
        seconds, _ = timed(lambda policy=policy: count(trace, policy))
        _, counted = timed(lambda policy=policy: count(part, policy))
        loop_s, walked = timed(lambda policy=policy: walk(part, policy))
        if counted != walked:
            raise SystemExit(f"{text}: the replay counts {dict(counted)}, the loop {dict(walked)}")
        ours.append(len(trace) / seconds)
        theirs.append(len(part) / loop_s)
        rows.append((text, seconds, ours[-1], theirs[-1], ours[-1] / theirs[-1]))
    slowest = min(ours)
    figures = {
        "requests": len(trace),
        "requests_per_s": round(slowest),
        "seconds": round(len(trace) / slowest, 2),
        "loop_requests_per_s": round(max(theirs)),
        "ratio_loop": round(min(a / b for a, b in zip(ours, theirs, strict=True)), 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "by_policy": {text: round(rate) for text, rate in zip(POLICIES, ours, strict=True)},
    }
    headings = ["", "seconds", "requests/s", "requests/s of the loop", "times as fast"]
    print_report(f"Simulator, {len(trace):,} requests", headings, rows, figures, as_json=options.json)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that work takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def count(trace: Trace, policy: Policy) -> Counter[Outcome]:
    """Replay a trace with the simulator."""
    counts = np.zeros(len(OUTCOMES), np.int64)
    for part in Replay(trace, policy, trace.entities, SPEEDS):
        counts += np.bincount(part.outcomes, minlength=len(OUTCOMES))
    return Counter({outcome: n for outcome, n in zip(OUTCOMES, counts.tolist(), strict=True) if n})


def walk(trace: Trace, policy: Policy) -> Counter[Outcome]:
    """Answer request by request, by the product's own rules: one generation of all entities, and an overlay."""
    every = 86_400 if policy.schedule else None
    rules, keep_s = policy.rules, policy.realtime_keep_s
    overlay: dict[int, Entry] = {}
    counts: Counter[Outcome] = Counter()
    for entity, instant in zip(trace.requests.entities.tolist(), trace.requests.times.tolist(), strict=True):
        now = instant / 1000
        found = overlay.get(entity)
        if found is not None and now >= found.computed_at + keep_s:
            found = None
        if every is not None:
            # a run takes a millisecond, so the slot of this very millisecond is not published yet
            begun = float(math.floor((now - 0.001) / every) * every)
            if found is None or (found.as_of, found.computed_at) < (begun, begun):
                retried_at = None if found is None else found.computed_at
                found = Entry({}, begun, begun, 1, Origin.BATCH, 1, retried_at)
            else:
                found = found._replace(row_as_of=begun)
        freshness = None if found is None else rules.judge(found, now)
        if found is not None and freshness is Freshness.FRESH:
            counts[answer_stored("m", "e", found).outcome] += 1
            continue
        counts[Outcome.COMPUTED if freshness in (None, Freshness.STALE) else Outcome.STALE] += 1
        if freshness is not Freshness.JUST_COMPUTED:
            overlay[entity] = Entry({}, float(math.floor(now)), now, 1, Origin.REALTIME, None)
    return counts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--loop", type=int, default=1_000_000, help="requests that the loop answers too")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
