"""Load by wrk, a compiled generator, with every answer checked by a script inside it."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SCRIPT = Path(__file__).with_name("wrk.lua")
#: share of one core from which the generator, not the server, may be what is measured
CLIENT_BOUND = 0.9


@dataclass(frozen=True)
class Load:
    """What wrk saw, all of it right answers; `client_core` is the generator's share of a core."""

    rps: float
    p50_ms: float
    p99_ms: float
    client_core: float

    @property
    def client_bound(self) -> bool:
        """Whether the generator was too busy for the figure to be the server's."""
        return self.client_core > CLIENT_BOUND


@dataclass(frozen=True)
class Posts:
    """Bodies to POST to `path`: each a line of the file `rows` between `before` and `after`."""

    path: str
    rows: Path
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Target:
    """A server and what its right answers look like.

    `must` is text that every body holds. `answers` is a file of expected predictions, one a line; None for
    a server whose body is constant. It is asked by GET for an id unless there are `posts`.
    """

    name: str
    url: str
    rows: int
    must: str
    query: str = ""
    answers: Path | None = None
    posts: Posts | None = None

    @property
    def arguments(self) -> list[str]:
        """What the script inside wrk is told."""
        told = [str(self.rows), self.query, self.must, str(self.answers or "")]
        posts = self.posts
        return [*told, posts.path, str(posts.rows), posts.before, posts.after] if posts else told


def write_answers(path: Path, answers: npt.NDArray[np.float32]) -> Path:
    """Write the expected predictions as text, one a line, and return the path."""
    np.savetxt(path, answers.astype(np.float64), fmt="%.9g")
    return path


def wrk_binary() -> str:
    """Return the generator's path, or end the benchmark with a sentence."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed: apt install wrk (the benchmarks need a compiled load generator)")
    return wrk


def load(target: Target, *, connections: int, seconds: float) -> Load:
    """Load a server and return what came of it.

    A benchmark of wrong answers is none: one wrong or missing answer ends it with a sentence.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [
            wrk_binary(), "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(_SCRIPT),
            target.url,
            "--", *target.arguments,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    took_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _checked(target, finished.stdout, cpu_s / took_s)


def _checked(target: Target, output: str, client_core: float) -> Load:
    lines = output.splitlines()
    result = json.loads(next(line for line in lines if line.startswith("RESULT ")).removeprefix("RESULT "))
    bad = {name: result[name] for name in ("wrong", "refused", "lost") if result[name]}
    if bad or not result["requests"]:
        sample = next((line for line in lines if line.startswith("WRONG ")), "")
        raise SystemExit(f"{target.name}: not every answer was right: {bad or 'no answer at all'} {sample}".rstrip())
    return Load(
        rps=result["requests"] / (result["duration_us"] / 1e6),
        p50_ms=result["p50_us"] / 1000,
        p99_ms=result["p99_us"] / 1000,
        client_core=client_core,
    )


def median_load(loads: list[Load]) -> Load:
    """Return the load whose rate is the median (the lower of two)."""
    return sorted(loads, key=lambda one: one.rps)[(len(loads) - 1) // 2]
