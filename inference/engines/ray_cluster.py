"""Hands out a run's chunks on Ray: actors score them (`executor`), one a GPU, or one a processor without GPUs.

`python -P -m inference.engines.ray_cluster ADDRESS` checks a cluster: its answer, its versions, and Forecache there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from inference.batch.engines import LAST_WORD, ray_address
from inference.batch.records import RunRecord
from inference.engines.executor import chunk_worker, settings_file, settle
from inference.errors import Unavailable
from inference.logs import get_logger
from inference.settings import RaySettings, Settings
from inference.settings.loading import ENV_CONFIG

log = get_logger(__name__)

#: how often the driver looks whether nodes joined or left
_LOOK_EVERY_S = 1.0
#: so many actors in a row that cannot start, and none that works, end the run
_MOST_BAD_STARTS = 3
#: for so long a node may take to start one process and import Forecache
_PROBE_WITHIN_S = 60.0
#: characters of a folder below which Ray's sockets still have legal paths: 103 in all on macOS, 107 on Linux
_LONGEST_FOLDER = 24
#: Ray's least memory for shared objects: chunks are numbers
_OBJECTS_BYTES = 80 << 20
#: Ray reads this when it is imported; nothing is reported to its makers
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
#: its processes listen on the loopback address only (the variable's name is older than its use on Linux)
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


class ChunkActor:
    """Scores chunks in a process of a Ray node. Loads the model with its first chunk."""

    def __init__(self, config: str | None) -> None:
        if config is not None:
            os.environ.setdefault(ENV_CONFIG, config)

    def open(self) -> None:
        """Read the settings.

        Raises:
            SettingsError: the node has no legal settings.
        """
        chunk_worker("ray")

    def settle(self, run_id: str, number: int) -> bool:
        """Score a chunk; return whether it is done or its run is over (`executor.settle`)."""
        return settle("ray", run_id, number)


def hand_out(settings: Settings, run: RunRecord, numbers: Sequence[int]) -> None:
    """Score chunks on Ray; return when each is done or the run is over.

    Raises:
        Unavailable: there is no connection to the cluster, or its actors cannot start.
    """
    of_model = settings.models[run.model]
    with joined(ray_address(of_model)) as ray:
        log.info("ray.started", run_id=run.run_id, chunks=len(numbers))
        ActorPool(ray, run.run_id, settings_file(settings), of_model.batch.ray, deque(numbers)).score()


@contextmanager
def joined(address: str | None) -> Iterator[Any]:
    """Yield the library `ray`, joined to a cluster; without an address, start a Ray on this machine and end it.

    Raises:
        Unavailable: there is no connection, the cluster has other versions, or Ray failed within the block.
    """
    folder = None if address else tempfile.mkdtemp(prefix="ray", dir=_short_folder())
    os.environ.update(_QUIET if address else {**_QUIET, **_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    import ray
    from ray.exceptions import RayError

    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if folder:
        alone = {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
        options |= alone | {"_temp_dir": folder}
    try:
        ray.init(**options)
        yield ray
    except (RayError, RuntimeError, OSError, ValueError) as error:  # what Ray raises; a ConnectionError is an OSError
        raise Unavailable(ray_sentence(address, error)) from error
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str:
    """Return a folder for temporary files; the paths of Ray's sockets have to be short."""
    usual = tempfile.gettempdir()
    # mkdtemp makes a folder that only we can read
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108


@dataclass
class ActorPool:
    """Actors that score chunks, one each at a time. A chunk whose actor or node died goes to another actor.

    Actors that the cluster has no room for wait there without a chunk; nodes that join get actors.
    """

    ray: Any
    run_id: str
    config: str | None
    configured: RaySettings
    waiting: deque[int]
    #: result of the last call → its actor
    starting: dict[Any, Any] = field(default_factory=dict)
    #: result of the last call → its actor and chunk
    working: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    bad_starts: int = 0
    #: seconds of the monotonic clock
    look_at: float = 0.0

    def score(self) -> None:
        """Return when every chunk is done or the run is over.

        Raises:
            RayError: actors cannot start, or the connection is gone.
        """
        while self.waiting or self.working:
            self._grow()
            while self.idle and self.waiting:
                actor, number = self.idle.pop(), self.waiting.popleft()
                self.working[actor.settle.remote(self.run_id, number)] = actor, number
            calls = [*self.starting, *self.working]
            ended, _ = self.ray.wait(calls, num_returns=1, timeout=_LOOK_EVERY_S)
            for call in ended:
                self._take(call)

    def _take(self, call: Any) -> None:
        """Note how a call ended."""
        actor, number = self.working.pop(call, (None, None))
        try:
            settled = self.ray.get(call)
        except self.ray.exceptions.RayActorError as error:  # the actor or its node is gone
            self.look_at = 0.0
            if number is None:
                del self.starting[call]
                self._count_bad_start(error)
            else:
                log.warning("ray.actor_died", run_id=self.run_id, chunk=number, error=str(error).splitlines()[0])
                self.waiting.append(number)
            return
        if number is None:
            actor = self.starting.pop(call)
            self.bad_starts = 0
        elif not settled:
            self.waiting.append(number)
        self.idle.append(actor)

    def _count_bad_start(self, error: Exception) -> None:
        self.bad_starts += 1
        if self.bad_starts >= _MOST_BAD_STARTS and not (self.working or self.idle):
            raise error

    def _grow(self) -> None:
        """Start the actors that are missing, at least one; it may wait in Ray's queue for a node."""
        if time.monotonic() < self.look_at:
            return
        self.look_at = time.monotonic() + _LOOK_EVERY_S
        options, room = actor_options([node for node in self.ray.nodes() if node["Alive"]], self.configured)
        if room == 0:
            log.warning("ray.waits_for_node", run_id=self.run_id, needs=options)
        wanted = min(len(self.waiting) + len(self.working), max(room, 1))
        for _ in range(wanted - len(self.starting) - len(self.working) - len(self.idle)):
            actor = self.ray.remote(**options)(ChunkActor).remote(self.config)
            self.starting[actor.open.remote()] = actor


def actor_options(nodes: Sequence[dict[str, Any]], configured: RaySettings) -> tuple[dict[str, Any], int]:
    """Return Ray's options of an actor, and how many such actors the nodes have room for."""
    have = [node.get("Resources", {}) for node in nodes]
    gpus = configured.gpus_per_actor
    if gpus is None:
        gpus = 1 if any(one.get("GPU", 0) >= 1 for one in have) else 0
    kind, each = ("GPU", gpus) if gpus else ("CPU", configured.cpus_per_actor)
    options = {"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": each}
    return {**options, "max_restarts": 0}, sum(int(one.get(kind, 0) / each) for one in have)


def ray_sentence(address: str | None, error: Exception) -> str:
    """Return one line that says why Ray gave up, and what to do."""
    where = f"the Ray cluster at {address}" if address else "a Ray on this machine"
    said = str(getattr(error, "cause", None) or error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "Version mismatch" in said:
        return f"{where} runs another Ray or Python: {' '.join(lines)[:300]}; install the same versions here and there"
    if isinstance(error, ConnectionError):
        return f"{where} does not answer: correct `ray.address`, or start it (`ray start --head`): {lines[0][:200]}"
    if isinstance(error, ValueError):
        return f"{where} has an address that Ray refuses: correct `ray.address`: {lines[0][:200]}"
    return f"{where} gave up: {(lines or ['no reason given'])[-1 if 'Traceback' in said else 0][:300]}"


def probe() -> str:
    """Return the name of the executor's module, which a node can import only if it has Forecache."""
    return settle.__module__


def main(address: str) -> int:
    """Check a cluster; print why it cannot be used, and return the exit status."""
    try:
        with joined(address) as ray:
            from ray.exceptions import GetTimeoutError

            try:
                ray.get(ray.remote(num_cpus=0, max_retries=0)(probe).remote(), timeout=_PROBE_WITHIN_S)
            except GetTimeoutError:  # no node is up yet: an autoscaler starts nodes when actors wait
                log.info("ray.no_node_yet", address=address)
    except Unavailable as error:
        print(f"{LAST_WORD}{error.message}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
