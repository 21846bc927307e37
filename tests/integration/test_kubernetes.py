"""Each container of deploy/kubernetes as a process: its command, environment, secrets, probes, and its end."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import prometheus_client.parser
import pytest
import redis

from tests.support.flights import write_flights
from tests.support.ports import free_port
from tests.support.redis_server import find_redis_binary
from tests.support.stack import ROOT, child_environment, end_tree
from tests.support.waiting import wait_for
from tests.unit.test_kubernetes import DEPLOYMENTS, KEDA, README, container_of, pod_of

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

#: under the prefix, where the workers' user may read
STREAM = '[streams.flights]\nstream = "forecache:in:flights"\n'
SECRETS = "/run/secrets/forecache"
BIN = Path(sys.executable).parent
#: in the order in which a cluster might start them; GPUs are no part of this machine
NAMES = sorted(set(DEPLOYMENTS) - {"forecache-batch-gpu"})


class Cluster:
    """The pods of the manifests, as processes in one folder, and a Redis with the users of users.acl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_port = free_port()
        self.ports = {name: free_port() for name in ("forecache-api", "forecache-dashboard")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        (folder / "forecache.toml").write_text(write_flights(folder) + STREAM)
        (folder / "code").mkdir()
        self._make_secrets()

    def _make_secrets(self) -> None:
        """Do what the README says, but for the cluster: an entry becomes a file in the secret's folder."""
        made = self.folder / "secrets"
        subprocess.run([ROOT / "docker" / "make-secrets.sh", made], check=True, timeout=30)
        made.chmod(0o755)
        for line in re.findall(r"kubectl -n forecache create secret .*", README):
            words = shlex.split(line)
            secret = self.folder / words[6]
            secret.mkdir()
            for word in words[7:]:
                entry, _, file = word.removeprefix("--from-file=").rpartition("=")
                text = (self.folder / file).read_text()
                text = re.sub(r"@(broker|cache):6379", f"@127.0.0.1:{self.redis_port}", text)
                (secret / (entry or Path(file).name)).write_text(text)

    def start_redis(self) -> None:
        # one server for both: it has the users of the broker and, with other passwords, of the cache
        users = (self.folder / "secrets" / "broker_users").read_text()
        for line in (self.folder / "secrets" / "cache_users").read_text().splitlines():
            hashed = re.search(r"user (\S+) .*#([0-9a-f]{64})", line)
            if hashed:
                users = re.sub(rf"(user {hashed[1]} .*?)#", rf"\1#{hashed[2]} #", users)
        (self.folder / "users.acl").write_text(users)
        self.processes["redis"] = subprocess.Popen(
            [find_redis_binary(7), "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "",
             "--dir", self.folder, "--maxmemory-policy", "noeviction", "--aclfile", self.folder / "users.acl"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        client = redis.Redis(port=self.redis_port, username="health", password="-", retry=None)
        wait_for(lambda: _pings(client), "Redis")

    def start(self, name: str) -> None:
        [secret] = [one["secret"]["secretName"] for one in pod_of(name)["volumes"] if "secret" in one]
        environment = {one["name"]: one["value"] for one in container_of(name)["env"]}
        if name in self.ports:
            kind = name.removeprefix("forecache-").upper()
            environment |= {f"FORECACHE_{kind}__PORT": str(self.ports[name]), f"FORECACHE_{kind}__HOST": "127.0.0.1"}
        self.environments[name] = child_environment() | {
            key: value.replace(SECRETS, str(self.folder / secret)).replace("/srv/forecache", str(self.folder))
            for key, value in environment.items()
        }
        path = self.environments[name].get("PYTHONPATH", "")
        self.environments[name]["PYTHONPATH"] = os.pathsep.join([path, str(ROOT)])
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                _here(container_of(name)["command"]),
                cwd=self.folder,
                env=self.environments[name],
                stdout=log,
                stderr=log,
            )

    def passes(self, name: str, probe: dict[str, Any]) -> bool:
        if "exec" in probe:
            words, environment = _here(probe["exec"]["command"]), self.environments[name]
            done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, check=False)
            return done.returncode == 0
        try:
            url = f"http://127.0.0.1:{self.ports[name]}{probe['httpGet']['path']}"
            return httpx.get(url, timeout=probe["timeoutSeconds"]).is_success
        except httpx.TransportError:
            return False

    def said(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


def _here(command: list[str]) -> list[str]:
    program = {"python": sys.executable, "forecache": str(BIN / "forecache")}
    return [program[command[0]], *command[1:]]


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("pods"))
    try:
        cluster.start_redis()
        for name in NAMES:
            cluster.start(name)
            probe = container_of(name).get("startupProbe")
            if probe:
                wait_for(functools.partial(cluster.passes, name, probe), name, evidence=cluster.said)
        yield cluster
    finally:
        for process in cluster.processes.values():
            end_tree(process)


def test_every_probe_of_every_pod_passes(cluster: Cluster) -> None:
    for name in NAMES:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container_of(name).get(kind)
            if probe:
                wait_for(functools.partial(cluster.passes, name, probe), f"{name} {kind}", evidence=cluster.said)
        assert cluster.processes[name].poll() is None, name


def test_the_pods_serve_with_the_rights_of_their_secrets(cluster: Cluster) -> None:
    key = (cluster.folder / "secrets" / "client_key").read_text()
    url = f"http://127.0.0.1:{cluster.ports['forecache-api']}"
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=30) as api:
        run = api.post("/runs", json={"model": "delay"}).json()["run_id"]
        wait_for(lambda: api.get(f"/runs/{run}").json()["state"] == "published", "the run", evidence=cluster.said)
        assert api.get("/predict/F3").json()["prediction"] == 4.0
    assert httpx.get(f"{url}/predict/F3").status_code == 401


def test_keda_finds_its_metrics(cluster: Cluster) -> None:
    key = (cluster.folder / "forecache-keda" / "token").read_text()
    url = f"http://127.0.0.1:{cluster.ports['forecache-api']}/metrics"
    text = httpx.get(url, headers={"Authorization": f"Bearer {key}"}).raise_for_status().text
    samples = {
        f'{sample.name}{{queue="{sample.labels["queue"]}"}}'
        for family in prometheus_client.parser.text_string_to_metric_families(text)
        for sample in family.samples
        if "queue" in sample.labels
    }
    wanted = {one["spec"]["triggers"][0]["metadata"]["valueLocation"] for one in KEDA[1:]}
    assert wanted <= samples


def test_every_pod_ends_within_its_grace(cluster: Cluster) -> None:
    for name in NAMES:
        cluster.processes[name].send_signal(signal.SIGTERM)
    for name in NAMES:
        assert cluster.processes[name].wait(pod_of(name)["terminationGracePeriodSeconds"]) in (0, -signal.SIGTERM), name
