"""Load beyond what a server can take, by wrk in the background; refusals (503) are answers too."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("pressure.lua")
#: what an answer may come after its budget and still count as in time
GRACE_MS = 50


@dataclass(frozen=True)
class Pressure:
    """What came of it: predictions as asked for, fallbacks of the ladder, refusals, anything else, lost connections.

    `late`: the share of answers that took longer than their budget and 50 ms.
    """

    duration_s: float
    answered: int
    fallback: int
    shed: int
    wrong: int
    lost: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late: float

    @property
    def rps(self) -> float:
        """Predictions as asked for, a second."""
        return self.answered / self.duration_s


class Pressing:
    """A generator at work on `/predict/{id}` of ids drawn uniformly from `rows`.

    `first_after_s`: connections are opened at once, and ask for the first time so much later.
    """

    def __init__(
        self,
        url: str,
        *,
        rows: int,
        connections: int,
        seconds: float,
        query: str = "",
        budget_ms: int = 10_000,
        first_after_s: float = 0.0,
    ) -> None:
        wrk = shutil.which("wrk")
        if wrk is None:
            raise SystemExit("wrk is not installed: apt install wrk (the benchmarks need a compiled load generator)")
        self._process = subprocess.Popen(
            [
                wrk, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(_SCRIPT), url,
                "--", str(rows), query, str(budget_ms + GRACE_MS), str(first_after_s * 1000), str(connections),
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self) -> Pressure:
        """Wait until its time is over and return what came of it."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"wrk failed: {output}")
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        return Pressure(**json.loads(line.removeprefix("RESULT ")))


def press(
    url: str, *, rows: int, connections: int, seconds: float, query: str = "", budget_ms: int = 10_000
) -> Pressure:
    """Load a server, wait, and return what came of it."""
    return Pressing(url, rows=rows, connections=connections, seconds=seconds, query=query, budget_ms=budget_ms).finish()
