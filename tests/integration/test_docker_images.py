"""The images of docker/, built without a Docker daemon, at work: a run and predictions over HTTP from their roots."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.container_images import Container, Images, require_builder
from tests.support.flights import FLIGHTS_TOML, write_flights
from tests.support.models import export_models
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import end_tree
from tests.support.waiting import wait_for

#: a Debian, four builds, one of them with TensorFlow
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

KEY = "fc_of_a_test"
#: gRPC takes 22 MB of it
API_LIMIT_BYTES = 290_000_000
USER = "10001"

#: of entities that are not stored: a database, then code of the user's
FALLBACKS_TOML = """
[[models.delay.fallbacks]]
kind = "sql"
name = "shop"
url = "sqlite:///shop.db"
query = "SELECT flight AS entity_id, a, b FROM flights WHERE flight IN :ids"
timeout = "3s"
[[models.delay.fallbacks]]
kind = "function"
name = "rules"
function = "flight_rules:features"
timeout = "3s"
"""
RULES = """
import pandas as pd

def features(entity_ids):
    return pd.DataFrame({"entity_id": [one for one in entity_ids if one.startswith("NEW-")], "a": 20.0, "b": 22.0})
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    require_builder()
    built = Images(tmp_path_factory.mktemp("images"))
    try:
        built.make_base()
        built.build("api")
        built.build("dashboard")
        built.build("worker", WORKER_EXTRAS="tensorflow,sql")
        yield built
    finally:
        built.close()


@pytest.fixture(scope="module")
def roots(images: Images) -> dict[str, Container]:
    return {name: Container(images, name) for name in ("base", "api", "dashboard", "worker")}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


def test_the_api_image_adds_less_than_290_mb_to_its_base(roots: dict[str, Container]) -> None:
    added = roots["api"].size - roots["base"].size
    assert 50_000_000 < added < API_LIMIT_BYTES, f"{added / 1e6:.0f} MB"


@pytest.mark.parametrize("name", ["api", "dashboard"])
def test_light_images_hold_no_library_of_models(roots: dict[str, Container], name: str) -> None:
    code = "import importlib.util as u; print([m for m in ('tensorflow', 'keras', 'pip') if u.find_spec(m)])"
    assert roots[name].run("python", "-P", "-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["api", "dashboard", "worker"])
def test_every_image_runs_as_a_user_who_may_write_in_three_folders_only(roots: dict[str, Container], name: str) -> None:
    root = roots[name]
    assert root.run("id", "-u").stdout.strip() == USER
    writable = root.run("find", "/", "-xdev", "-type", "d", "-writable", "-not", "-path", "/proc/*").stdout.split()
    own = {"/srv/forecache/.forecache", "/srv/forecache/predictions"}
    # what every Debian lets everybody write in
    assert own <= set(writable) <= own | {"/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue"}


def test_no_image_keeps_what_pip_was_told(roots: dict[str, Container]) -> None:
    for name in ("api", "dashboard", "worker"):
        assert not (roots[name].root / "etc" / "pip.conf").exists()
        assert not (roots[name].root / "src").exists()


class Deployment:
    """Processes from the images over one Redis, as compose.yaml starts them, with secrets from files."""

    def __init__(self, folder: Path, images: Images, roots: dict[str, Container], redis_server: RedisServer) -> None:
        self.folder, self._images, self._roots = folder, images, roots
        self.ports = {"api": free_port(), "dashboard": free_port()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir()
        write_flights(folder)
        # the TensorFlow of the worker's image is what is tried
        shutil.rmtree(folder / "model" / "1")
        export_models({folder / "model" / "1": "sum:2"})
        (folder / "forecache.toml").write_text(FLIGHTS_TOML + FALLBACKS_TOML)
        (folder / "code").mkdir()
        (folder / "code" / "flight_rules.py").write_text(RULES)
        with closing(sqlite3.connect(folder / "shop.db")) as shop, shop:
            shop.execute("CREATE TABLE flights AS SELECT 'SHOP-1' AS flight, 3.0 AS a, 4.0 AS b")
        secrets = {
            "broker_url": redis_server.url(0),
            "cache_url": redis_server.url(1),
            "key_hash": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}",
            "dashboard_password": "sesame",
        }
        (folder / "secrets").mkdir()
        for name, secret in secrets.items():
            (folder / "secrets" / name).write_text(secret + "\n")
        self._volumes = {folder / name: f"/srv/forecache/{name}:ro" for name in ("forecache.toml", "model")}
        self._volumes |= {folder / name: f"/srv/forecache/{name}:ro" for name in ("flights.parquet", "shop.db", "code")}
        self._volumes |= {folder / "secrets": "/run/secrets:ro"}
        self._env = {
            "FORECACHE_REDIS__URL_FILE": "/run/secrets/broker_url",
            "FORECACHE_REDIS__CACHE_URL_FILE": "/run/secrets/cache_url",
            "FORECACHE_API__PORT": str(self.ports["api"]),
            "FORECACHE_API__KEYS__TEST__HASH_FILE": "/run/secrets/key_hash",
            "FORECACHE_API__KEYS__TEST__SCOPES": '["read", "enqueue", "write", "admin"]',
            "FORECACHE_DASHBOARD__PORT": str(self.ports["dashboard"]),
            "FORECACHE_DASHBOARD__PASSWORD_FILE": "/run/secrets/dashboard_password",
            "CUDA_VISIBLE_DEVICES": "-1",
        }

    def start(self, name: str, image: str, *command: str) -> None:
        """Start a process; without a command, the image's own."""
        argv = command or tuple(self._images.config(image)["Cmd"])
        log = self.folder / f"{name}.log"
        env = self._env | ({"PYTHONPATH": "/srv/forecache/code"} if image == "worker" else {})
        self.processes[name] = self._roots[image].start(log, *argv, volumes=self._volumes, env=env)

    def healthy(self, image: str) -> subprocess.CompletedProcess[str]:
        """Run the image's own health check, with the ports of this deployment."""
        _, *argv = self._images.config(image)["Healthcheck"]["Test"]
        for service, port in (("api", 8000), ("dashboard", 5555)):
            argv = [word.replace(f":{port}/", f":{self.ports[service]}/") for word in argv]
        return self._roots[image].run(*argv, volumes=self._volumes, env=self._env)

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self.processes.values():
            end_tree(process)


@pytest.fixture
def deployment(
    tmp_path: Path, images: Images, roots: dict[str, Container], redis_server: RedisServer
) -> Iterator[Deployment]:
    one = Deployment(tmp_path / "deployment", images, roots, redis_server)
    yield one
    one.close()


def test_a_deployment_from_the_images_runs_serves_and_knows_its_health(deployment: Deployment) -> None:
    deployment.start("api", "api")
    deployment.start("maintenance", "api", "python", "-P", "-m", "workers", "maintenance")
    deployment.start("dashboard", "dashboard")
    assert deployment.healthy("worker").returncode == 1  # maintenance beats from another root
    deployment.start("batch", "worker")
    deployment.start("realtime", "worker", "python", "-P", "-m", "workers", "realtime")
    api = f"http://127.0.0.1:{deployment.ports['api']}"

    def ready() -> bool:
        try:
            return httpx.get(f"{api}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(ready, f"readiness; the logs end:\n{deployment.tails()}", 180)
    assert httpx.get(f"{api}/predict/F1").status_code == 401
    with httpx.Client(base_url=api, headers={"X-API-Key": KEY}, timeout=30) as client:
        computed = client.post("/predict", json={"instances": [{"a": 2.0, "b": 3.0}]}).raise_for_status().json()
        assert computed["predictions"][0]["prediction"] == 5.0
        run_id = client.post("/runs").raise_for_status().json()["run_id"]
        wait_for(
            lambda: client.get(f"/runs/{run_id}").json()["state"] == "published",
            f"the run; the logs end:\n{deployment.tails()}", 120,
        )  # fmt: skip
        hit, by_database, by_function = (
            client.get(f"/predict/{entity}").raise_for_status().json() for entity in ("F41", "SHOP-1", "NEW-1")
        )
        changed = client.put("/features/F41", json={"features": {"a": 1.0, "b": 2.0}}).raise_for_status().json()
    assert (hit["prediction"], hit["outcome"]) == (42.0, "hit_batch")
    assert (by_database["prediction"], by_function["prediction"]) == (7.0, 42.0), deployment.tails()
    assert changed["entity_id"] == "F41"
    for image in ("api", "dashboard", "worker"):
        said = deployment.healthy(image)
        assert said.returncode == 0, (image, said.stdout, said.stderr, deployment.tails())
