"""Load by wrk of which every single answer is kept, with its times; at a constant rate if one is named."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.csv as csv

from rig.wrk import CLIENT_BOUND, wrk_binary

_SCRIPT = Path(__file__).with_name("traced.lua")
_COLUMNS = ["row", "due_us", "sent_us", "received_us", "outcome"]


@dataclass(frozen=True)
class Mix:
    """What is asked: any of the rows below `hits`, and a `miss_share` of those up to `last_miss`, each once."""

    hits: int
    first_miss: int
    last_miss: int
    miss_share: float


@dataclass(frozen=True)
class Trace:
    """The answers in the order of their arrival; instants in µs of the monotonic clock.

    Those that are no prediction have row -1, no times, and their status as the outcome.
    """

    row: npt.NDArray[np.int64]
    due_us: npt.NDArray[np.int64]
    sent_us: npt.NDArray[np.int64]
    received_us: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.str_]
    duration_s: float
    client_core: float
    next_miss: int

    @property
    def rps(self) -> float:
        """Answers a second, whatever they say."""
        return len(self.row) / self.duration_s

    @property
    def client_bound(self) -> bool:
        """Whether the generator was too busy for the figure to be the server's."""
        return self.client_core > CLIENT_BOUND

    def latency_ms(self, *outcomes: str, after_s: float = 0) -> npt.NDArray[np.float64]:
        """Return the time from due to answered of each prediction of these outcomes (none named: of all)."""
        kept = self._due_after(after_s)
        if outcomes:
            kept &= np.isin(self.outcome, outcomes)
        return (self.received_us[kept] - self.due_us[kept]) / 1000

    def lateness_ms(self, after_s: float = 0) -> npt.NDArray[np.float64]:
        """Return for how long each request, once due, waited for a free connection or for the generator."""
        kept = self._due_after(after_s)
        return (self.sent_us[kept] - self.due_us[kept]) / 1000

    def _due_after(self, seconds: float) -> npt.NDArray[np.bool_]:
        known = self.row >= 0
        return known & (self.due_us >= self.due_us[known].min() + seconds * 1e6)

    def shares(self) -> dict[str, float]:
        """Return the share of each outcome among the answers."""
        names, counts = np.unique(self.outcome, return_counts=True)
        return {str(name): int(count) / len(self.row) for name, count in zip(names, counts, strict=True)}


def trace_load(url: str, answers: Path, mix: Mix, *, connections: int, seconds: float, rate_rps: float = 0) -> Trace:
    """Load a server and return every answer.

    `rate_rps`: requests a second, evenly, due whether or not the answers keep up (more than `connections` are never
    under way, but latency counts from the instant at which a request was due); 0 lets each connection ask as soon as it
    was answered. One wrong or lost answer ends the benchmark with a sentence.
    """
    file = answers.with_name("trace.csv")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [
            wrk_binary(), "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(_SCRIPT), url,
            "--", str(answers), str(file), str(mix.hits), str(mix.first_miss), str(mix.last_miss),
            str(mix.miss_share), str(rate_rps),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    took_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    line = next(line for line in finished.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    columns = csv.read_csv(file, read_options=csv.ReadOptions(column_names=_COLUMNS)).to_pydict()
    trace = Trace(
        **{name: np.array(columns[name]) for name in _COLUMNS},
        duration_s=result["duration_us"] / 1e6,
        client_core=cpu_s / took_s,
        next_miss=result["next_miss"],
    )
    wrong = int((trace.outcome == "wrong").sum())
    if wrong or result["lost"]:
        raise SystemExit(f"{url}: {wrong} wrong and {result['lost']} lost answers of {len(trace.row)}")
    if not (trace.row >= 0).any():
        raise SystemExit(f"{url}: no prediction among {len(trace.row)} answers: {trace.shares()}")
    if result["exhausted"]:
        raise SystemExit("every row that was to be missed has been asked for: more --misses are needed")
    return trace
