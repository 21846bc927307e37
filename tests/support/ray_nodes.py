"""A Ray of several machines in small: a head without processors and nodes with one each, on this machine.

It lives in a process of its own, for Ray leaves files open. Each line on its stdin is a command, answered by JSON:
`add`; `remove NUMBER`, as if its power failed; `claim VERSION`: the cluster says that it runs this Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.support.ports import free_port
from tests.support.stack import child_environment

#: what a cluster with tokens asks of its nodes and of whoever joins
TOKENS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


class RayNodes:
    """The cluster, driven from tests. Ends with its block."""

    def __init__(self, log: Path) -> None:
        self._client_port = free_port()
        self.address = ""
        #: process ids of the nodes that were added, in their order
        self.raylets: list[int] = []
        self._log = log

    def __enter__(self) -> RayNodes:
        environment = child_environment() | TOKENS | {"RAY_USAGE_STATS_ENABLED": "0"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self._client_port)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.communicate(timeout=60)  # the end of its stdin ends the cluster
        for one in family:
            if one.is_running():
                one.kill()

    @property
    def client_address(self) -> str:
        """What drivers from outside join."""
        return f"ray://127.0.0.1:{self._client_port}"

    def tell(self, command: str) -> None:
        """Send a command and wait until it is done."""
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._read()

    def actors(self, node: int | None = None) -> list[psutil.Process]:
        """The processes of actors that score chunks, on one node or on all."""
        found = []
        for pid in self.raylets if node is None else [self.raylets[node]]:
            if pid and psutil.pid_exists(pid):
                family = psutil.Process(pid).children(recursive=True)
                found += [one for one in family if one.name().startswith("ray::ChunkActor")]
        return found

    def _read(self) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-3000:]
        answer = json.loads(line)
        self.address, self.raylets = answer["address"], answer["raylets"]


def main(client_port: int) -> None:
    """Start the head, then do what the lines of stdin say."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the paths of its sockets have to be short
    (folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(folder)  # before Ray is imported
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), list[Any]()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, ray_client_server_port=client_port)
        _answer(cluster, nodes)
        for line in sys.stdin:
            command, _, what = line.strip().partition(" ")
            if command == "add":
                nodes.append(cluster.add_node(num_cpus=1))
            elif command == "remove":
                cluster.remove_node(nodes[int(what)], allow_graceful=False)
            elif command == "claim":
                _claim_version(cluster, what)
            _answer(cluster, nodes)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _claim_version(cluster: Any, version: str) -> None:
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    kept, key, room = GcsClient(address=cluster.address), b"CLUSTER_METADATA", ray_constants.KV_NAMESPACE_CLUSTER
    told = json.loads(kept.internal_kv_get(key, room)) | {"ray_version": version}
    kept.internal_kv_put(key, json.dumps(told).encode(), True, room)


def _answer(cluster: Any, nodes: list[Any]) -> None:
    started = [node.all_processes.get("raylet") for node in nodes]
    raylets = [raylet[0].process.pid if raylet else 0 for raylet in started]
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
