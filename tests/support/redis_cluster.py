"""A real Redis Cluster for tests: three primaries with a replica each, on loopback."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from inference.redis.cluster import slot_of
from inference.redis.topology import SLOTS
from tests.support.ports import free_port
from tests.support.redis_server import find_redis_binary
from tests.support.waiting import wait_for

PRIMARIES = 3
#: a primary counts as failed after so long without an answer
NODE_TIMEOUT_MS = 1000


class ClusterNode:
    """One redis-server of a cluster."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.folder = folder
        self.port, self.bus_port = free_port(), free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Any:
        return redis.Redis(port=self.port, retry=None, socket_timeout=10)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [
                find_redis_binary(7), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder,
                "--save", "", "--appendonly", "no", "--cluster-enabled", "yes", "--cluster-port", str(self.bus_port),
                "--maxmemory-policy", "noeviction",
                "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no",
                "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *self.options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, *command: Any) -> Any:
        with self.client as client:
            return client.execute_command(*command)

    def answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.RedisError:
            return False

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()


class RedisCluster:
    """Primaries, each with `replicas` replicas. `nodes`: the primaries first."""

    def __init__(self, folder: Path, *, replicas: int = 1, options: tuple[str, ...] = ()) -> None:
        count = PRIMARIES * (1 + replicas)
        self.nodes = [ClusterNode(folder / f"node{number}", options) for number in range(count)]

    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:PRIMARIES])

    def start(self) -> RedisCluster:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            wait_for(node.answers, "a node of the cluster", 10)
        primaries, replicas = self.nodes[:PRIMARIES], self.nodes[PRIMARIES:]
        bounds = [SLOTS * number // PRIMARIES for number in range(PRIMARIES + 1)]
        for number, node in enumerate(primaries):
            node.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        # each meets each: gossip takes seconds
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        wait_for(lambda: all(_knows(node, len(self.nodes)) for node in self.nodes), "nodes that know each other", 20)
        for number, node in enumerate(replicas):
            node.ask("CLUSTER", "REPLICATE", primaries[number % PRIMARIES].ask("CLUSTER", "MYID"))
        wait_for(self.is_whole, "a whole cluster", 20)
        return self

    def is_whole(self) -> bool:
        """Whether all living nodes serve all slots, and each primary's replicas follow it."""
        expected = len(self.nodes) // PRIMARIES - 1
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                continue
            if not node.answers() or b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                return False
            slots = node.ask("CLUSTER", "SLOTS")
            if sum(last - first + 1 for first, last, *_ in slots) != SLOTS or len(slots[0]) < 3 + expected:
                return False
            role = node.ask("ROLE")
            if role[0] == b"slave" and role[3] != b"connected":
                return False
        return True

    def primary_of(self, key: str) -> ClusterNode:
        """Return the node that serves a key now, by what the first living node says."""
        living = next(node for node in self.nodes if node.answers())
        slot = slot_of(key)
        for first, last, primary, *_ in living.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def empty(self) -> None:
        """Remove all keys and scripts."""
        for node in self.nodes:
            if node.answers() and node.ask("ROLE")[0] == b"master":
                node.ask("FLUSHALL")
                node.ask("SCRIPT", "FLUSH")

    def move_slot(
        self, slot: int, source: ClusterNode, target: ClusterNode, *, between: Callable[[], object] = int
    ) -> None:
        """Move a slot with its keys, as `redis-cli --cluster reshard` does. `between`: called while half are moved."""
        source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1_000_000)
        half = len(keys) // 2
        self._migrate(source, target, keys[:half])
        between()
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self._migrate(source, target, keys)
        for node in (target, source, *self.nodes):
            if node.answers() and node.ask("ROLE")[0] == b"master":
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def _migrate(self, source: ClusterNode, target: ClusterNode, keys: list[bytes]) -> None:
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def _knows(node: ClusterNode, count: int) -> bool:
    lines = [line.split() for line in node.ask("CLUSTER", "NODES").splitlines()]
    return len(lines) == count and all(line[7] == b"connected" and b"handshake" not in line[2] for line in lines)
