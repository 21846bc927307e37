"""A rolling restart of everything under load, behind a balancer that repeats nothing: how many requests fail?

Two API processes on ports of their own, HAProxy with a health check on readiness and without retries, and clients that
keep their connections and repeat nothing either. Every process is replaced: workers before their senders, the API
processes one after the other. The baseline is the same restart of the API processes without a drain.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rig.dataset import Dataset, entity_id, make_dataset
from rig.open_loop import Called, Callers
from rig.report import print_report
from rig.stack import MODEL, Stack, free_port, http_ok, temporary_folder, wait_until

from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, REALTIME_QUEUE

#: of the requests, that must be computed
MISSES = 3
#: seconds for a client to have its answer
PATIENCE_S = 10
#: kind of worker → its queue
QUEUES = {"maintenance": MAINTENANCE_QUEUE, "gpu": BATCH_QUEUE, "realtime": REALTIME_QUEUE}
HAPROXY = """
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend web
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance roundrobin
    option httpchk
    http-check send meth GET uri /health/ready
    default-server check inter {check_ms}ms fall 2 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


@dataclass(frozen=True)
class Restarted:
    """What was replaced, and when (`time.monotonic`)."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Measured:
    """Every request of a restart, and its parts."""

    called: list[Called]
    restarted: list[Restarted]


class Deployment(Stack):
    """Two API processes behind a balancer, and one worker of each kind. `drain`: the setting `[api] drain`."""

    def __init__(self, folder: Path, dataset: Dataset, options: argparse.Namespace) -> None:
        super().__init__(folder, dataset)
        self.drain = options.drain
        self.options = options
        self.ports = (self.api_port, free_port())
        self.balancer_port = free_port()
        self._generation = 0

    def open(self) -> None:
        """Start all processes, publish a run, load features, and start the balancer."""
        for kind in QUEUES:
            self._start_worker(kind)
        self._start_beat()
        for replica in range(2):
            self._start_replica(replica)
        self.forecache("batch", "run", MODEL, "--wait")
        self.forecache("features", "load", MODEL, str(self.dataset.table))
        configuration = self.folder / "haproxy.cfg"
        one, two = self.ports
        configuration.write_text(
            HAPROXY.format(port=self.balancer_port, one=one, two=two, check_ms=self.options.check_ms)
        )
        binary = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if binary is None:
            raise SystemExit("this needs haproxy (Debian's package of the same name)")
        self.start("haproxy", binary, "-db", "-f", str(configuration))
        wait_until(lambda: http_ok(f"http://127.0.0.1:{self.balancer_port}/health/ready"), "the balancer")

    def restart_all(self) -> list[Restarted]:
        """Replace every process in the order of `docs/operations.md`."""
        self._generation += 1
        done = [self._timed("beat", self._stop_beat)]
        done += [self._timed(kind, lambda kind=kind: self._restart_worker(kind)) for kind in reversed(QUEUES)]
        done += self.restart_replicas()
        return [*done, self._timed("beat again", self._start_beat)]

    def restart_replicas(self) -> list[Restarted]:
        """Replace the API processes, one after the other."""
        return [self._timed(f"api {number + 1}", lambda n=number: self._restart_replica(n)) for number in range(2)]

    def _timed(self, name: str, act: Callable[[], object]) -> Restarted:
        began = time.monotonic()
        act()
        return Restarted(name, began, time.monotonic())

    def _start_worker(self, kind: str) -> None:
        node = f"{kind}-{self._generation}@bench"
        self.start(f"{kind}-{self._generation}", sys.executable, "-P", "-m", "workers", kind, "-n", node)
        presence = self.deployment.presence
        wait_until(
            lambda: any(one.name == node and one.ready for one in presence.roster(QUEUES[kind]).alive),
            node,
            timeout_s=90,
        )

    def _restart_worker(self, kind: str) -> None:
        self._start_worker(kind)
        self.stop(f"{kind}-{self._generation - 1}")

    def _start_beat(self) -> None:
        self.start("beat", sys.executable, "-P", "-m", "beat_schedule")

    def _stop_beat(self) -> None:
        self.stop("beat")

    def _start_replica(self, number: int) -> None:
        port, folder = self.ports[number], self.folder / f"replica-{number}"
        command = ["api"]
        self.variables = {"FORECACHE_API__PORT": str(port), "FORECACHE_API__DRAIN": self.drain}
        if self.options.up:
            # a machine of its own, with its own real-time worker
            folder.mkdir(exist_ok=True)
            shutil.copy(self.settings_file, folder)
            self.variables["FORECACHE_CONFIG"] = str(folder / self.settings_file.name)
            command = ["up", "--only", "api,realtime"]
        self.start(f"api-{number}", sys.executable, "-P", "-m", "app.cli", *command)
        self.variables = {}
        wait_until(lambda: http_ok(f"http://127.0.0.1:{port}/health/ready"), f"API process {number}")

    def _restart_replica(self, number: int) -> None:
        self.stop(f"api-{number}")
        self._start_replica(number)
        time.sleep(3 * self.options.check_ms / 1000)  # until the balancer has noticed


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder, Deployment(folder, make_dataset(folder, options.rows), options) as stack:
        stack.drain = options.drain if options.no_baseline else "0"
        stack.open()
        without = None
        if not options.no_baseline:
            without = asyncio.run(_measure(stack, stack.restart_replicas))
            stack.drain = options.drain
            stack.restart_replicas()  # those that run do not drain yet
        measured = asyncio.run(_measure(stack, stack.restart_all))
    report(without, measured, options)


async def _measure(stack: Deployment, restart: Callable[[], list[Restarted]]) -> Measured:
    """Return every request that was sent while `restart` ran, and what was replaced meanwhile."""
    numbers = itertools.count()

    def path() -> str:
        number = next(numbers)
        query = "?max_staleness_hours=0" if number % 10 < MISSES else ""
        return f"/predict/{entity_id(number % stack.dataset.rows)}{query}"

    callers = Callers(stack.balancer_port, path, patience_s=PATIENCE_S)
    restarting = asyncio.create_task(asyncio.to_thread(restart))
    await callers.keep_rate_while(stack.options.rate, lambda _: not restarting.done())
    return Measured(callers.called, await restarting)


def report(without: Measured | None, measured: Measured, options: argparse.Namespace) -> None:
    """Print the failures of each restart, beside those without a drain."""
    called = measured.called
    rows = [_row(one.name, [each for each in called if one.began <= each.at < one.ended]) for one in measured.restarted]
    rows.append(_row(f"all, drain {options.drain}", called))
    figures = {
        "requests": len(called), "failed": len(_failed(called)), "rate": options.rate,
        "slowest_s": round(max(one.took_s for one in called), 3),
        "outcomes": dict(Counter(one.outcome for one in called)),
    }  # fmt: skip
    if without:
        rows.append(_row("API processes, no drain", without.called))
        figures |= {
            "requests_without_drain": len(without.called),
            "failed_without_drain": len(_failed(without.called)),
        }
    title = f"A rolling restart of everything at {options.rate} requests/s, {MISSES} of 10 computed"
    print_report(title, ["restart of", "requests", "failed", "how"], rows, figures, as_json=options.json)


def _failed(called: list[Called]) -> list[Called]:
    return [one for one in called if one.status != 200]


def _row(name: str, called: list[Called]) -> tuple[str, int, int, str]:
    counts = Counter(f"{one.status or ''} {one.outcome}".strip() for one in _failed(called))
    return name, len(called), sum(counts.values()), ", ".join(f"{how} {count}" for how, count in counts.most_common())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--drain", default="5s", help="the setting [api] drain")
    parser.add_argument("--check-ms", type=int, default=500, help="between two health checks of the balancer")
    parser.add_argument("--up", action="store_true", help="each replica is a `forecache up --only api,realtime`")
    parser.add_argument("--no-baseline", action="store_true", help="measure only with the drain")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the table")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
