"""From spans of several processes to the layers of each request."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.traced import Trace

#: in the order of a miss's way; what `rig/spans` times, and what lies between
LAYERS = (
    "HTTP in",
    "request checked",
    "look-up",
    "micro-batch wait",
    "enqueue",
    "queue wait",
    "read",
    "model",
    "write",
    "rest of task",
    "reply",
    "answer made",
    "HTTP out",
)

#: begin and end, ns of the monotonic clock
Interval = tuple[int, int]


@dataclass(frozen=True)
class Layering:
    """Each request's layers (ms, a request a row) and what its client waited.

    `complete`: share of the requests of which every span was found; the others are left out.
    """

    layers_ms: npt.NDArray[np.float64]
    total_ms: npt.NDArray[np.float64]
    complete: float
    rows_per_task: float

    @property
    def explained(self) -> float:
        """Sum of the layers' medians by the median of what the clients waited; layers that vary together lessen it."""
        return float(np.median(self.layers_ms, axis=0).sum() / np.median(self.total_ms))

    def medians(self) -> dict[str, float]:
        """Return the median of each layer in ms."""
        return _named(np.median(self.layers_ms, axis=0))

    def typical(self) -> dict[str, float]:
        """Return the mean of each layer in ms over the tenth of the requests around the median; these do add up."""
        low, high = np.percentile(self.total_ms, [45, 55])
        around = (low <= self.total_ms) & (self.total_ms <= high)
        return _named(self.layers_ms[around].mean(axis=0))


def _named(layers_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(LAYERS, np.round(layers_ms, 3).tolist(), strict=True))


def read_layers(folder: Path, trace: Trace) -> Layering:
    """Return the layers of a load's computed answers; each row was asked for once."""
    by_row, within = _read_spans(folder)
    kept: list[list[float]] = []
    totals: list[float] = []
    tasks: dict[Interval, int] = defaultdict(int)
    computed = np.flatnonzero(trace.outcome == "computed")
    for at in computed.tolist():
        spans = by_row.get(int(trace.row[at]), {})
        if not {"request", "lookup", "dispatch", "send", "task"} <= spans.keys():
            continue
        inner = [_inside(within[name], spans["task"]) for name in ("read", "model", "write")]
        sent_ns, received_ns = int(trace.sent_us[at]) * 1000, int(trace.received_us[at]) * 1000
        kept.append([part / 1e6 for part in _layers_ns(spans, inner, sent_ns, received_ns)])
        totals.append((received_ns - sent_ns) / 1e6)
        tasks[spans["task"]] += 1
    if not kept:
        raise SystemExit(f"no request has all of its spans: were {folder} and the processes' own names changed?")
    return Layering(np.array(kept), np.array(totals), len(kept) / len(computed), sum(tasks.values()) / len(tasks))


def _layers_ns(spans: dict[str, Interval], inner: list[int], sent_ns: int, received_ns: int) -> list[int]:
    """Return how long each of `LAYERS` took; together they are what the client waited."""
    request, lookup, dispatch, send, task = (spans[name] for name in ("request", "lookup", "dispatch", "send", "task"))
    # a quick worker begins before the sender has returned: how it took the message up counts as enqueueing then
    handed_ns = min(send[1], task[0])
    # a server that looks up before it calls the application has checked the request by then
    taken_up_ns = min(request[0], lookup[0])
    return [
        taken_up_ns - sent_ns,
        lookup[0] - taken_up_ns,
        lookup[1] - lookup[0],
        dispatch[0] - lookup[1],
        handed_ns - dispatch[0],
        task[0] - handed_ns,
        *inner,
        task[1] - task[0] - sum(inner),
        dispatch[1] - task[1],
        request[1] - dispatch[1],
        received_ns - request[1],
    ]


def _inside(spans: list[Interval], outer: Interval) -> int:
    """Return the time that spans within another one took; `spans` are sorted and do not overlap."""
    first = bisect_right(spans, (outer[0], 0))
    took = 0
    for began_ns, ended_ns in spans[first:]:
        if began_ns >= outer[1]:
            break
        took += ended_ns - began_ns
    return took


def _read_spans(folder: Path) -> tuple[dict[int, dict[str, Interval]], dict[str, list[Interval]]]:
    """Return numbered spans by row and name, and the others by name, sorted."""
    by_row: dict[int, dict[str, Interval]] = defaultdict(dict)
    within: dict[str, list[Interval]] = defaultdict(list)
    for file in sorted(folder.glob("spans-*.csv")):
        for line in file.read_text().splitlines():
            name, numbers, began_ns, ended_ns = line.split(",")
            interval = int(began_ns), int(ended_ns)
            for number in filter(str.isdigit, numbers.split()):
                by_row[int(number)][name] = interval
            if not numbers:
                within[name].append(interval)
    for spans in within.values():
        spans.sort()
    return by_row, within
