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
_POST_SCRIPT = Path(__file__).with_name("post.lua")
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
    return _run(target.name, target.url, _SCRIPT, target.arguments, connections=connections, seconds=seconds)


@dataclass(frozen=True)
class Posted:
    """A server that is sent one body again and again.

    `answers` is a file of the expected predictions in order; `pattern` finds them in the answer (a Lua pattern), or is
    "" where they are the last bytes of it, as float32. `json_length`: of a body with binary tensors behind its JSON.
    """

    name: str
    url: str
    body: Path
    answers: Path
    pattern: str
    json_length: int | None = None


def post(target: Posted, *, connections: int, seconds: float) -> Load:
    """Load a server with posted bodies and return what came of it; see `load`."""
    kind = "application/json" if target.json_length is None else "application/octet-stream"
    length = "" if target.json_length is None else str(target.json_length)
    arguments = [str(target.body), kind, length, target.pattern, str(target.answers)]
    return _run(target.name, target.url, _POST_SCRIPT, arguments, connections=connections, seconds=seconds)


def _run(name: str, url: str, script: Path, arguments: list[str], *, connections: int, seconds: float) -> Load:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [
            wrk_binary(), "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(script), url,
            "--", *arguments,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    took_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _checked(name, finished.stdout, cpu_s / took_s)


def _checked(name: str, output: str, client_core: float) -> Load:
    lines = output.splitlines()
    result = json.loads(next(line for line in lines if line.startswith("RESULT ")).removeprefix("RESULT "))
    bad = {what: result[what] for what in ("wrong", "refused", "lost") if result[what]}
    if bad or not result["requests"]:
        sample = next((line for line in lines if line.startswith("WRONG ")), "")
        raise SystemExit(f"{name}: not every answer was right: {bad or 'no answer at all'} {sample}".rstrip())
    return Load(
        rps=result["requests"] / (result["duration_us"] / 1e6),
        p50_ms=result["p50_us"] / 1000,
        p99_ms=result["p99_us"] / 1000,
        client_core=client_core,
    )


def median_load(loads: list[Load]) -> Load:
    """Return the load whose rate is the median (the lower of two)."""
    return sorted(loads, key=lambda one: one.rps)[(len(loads) - 1) // 2]
