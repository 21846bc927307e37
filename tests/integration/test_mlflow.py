"""A real MLflow server: an alias moves under load, the registry goes away, and everything that it may refuse."""

from __future__ import annotations

import re
import shutil
import signal
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.errors import ModelError, ModelUnavailable
from inference.models.mlflow_client import MlflowRegistry, RegisteredVersion, is_installed
from inference.settings.registered import read_registered
from tests.support.mlflow_server import MlflowServer
from tests.support.redis_server import missing
from tests.support.stack import ROOT, Stack, child_environment, run_cli
from tests.support.waiting import wait_for
from tests.support.warm_start import run_python

# its environment is made the first time
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = 200
ALIAS = "models:/flight delay@champion"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    if not is_installed():
        missing("mlflow-skinny")
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        for factor in (1, 2):
            server.register("flight delay", factor)
        server.move_alias("flight delay", "champion", 1)
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, server: MlflowServer) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("deployment")
    columns = {"entity_id": [f"e{i}" for i in range(ROWS)], "x": pa.array(range(ROWS), pa.float32())}
    pq.write_table(pa.table(columns), folder / "table.parquet")
    settings = textwrap.dedent(
        f"""
        [mlflow]
        tracking_uri = "{server.url}"
        [models.m]
        path = "{ALIAS}"
        features = "{folder / "table.parquet"}"
        poll_every = "1s"
        [models.m.realtime]
        timeout_ms = 5000
        """
    )
    with Stack(folder, settings) as deployment:
        deployment.start("realtime", "realtime-2", "api")
        deployment.wait_ready()
        deployment.cli("features", "load", "m", str(folder / "table.parquet"))
        yield deployment


def test_an_alias_that_moves_reaches_all_workers_without_a_failed_request_and_so_does_its_way_back(
    server: MlflowServer, stack: Stack
) -> None:
    failed: list[Any] = []
    newest: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=stack.url, timeout=10) as client:
            i = 0
            while not stop.is_set():
                i = (i + 7) % ROWS
                got = client.get(f"/predict/e{i}", params={"max_staleness_hours": 0})
                body = got.json()
                if got.status_code != 200 or body["prediction"] != i * body["model_version"]:
                    failed.append((got.status_code, body))
                else:
                    newest[:] = [body["model_version"]]

    wait_for(lambda: _holding(stack, 1) == 2, "two workers with version 1", 60)
    assert httpx.get(f"{stack.url}/predict/e0").status_code == 200
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for version in (2, 1):
            server.move_alias("flight delay", "champion", version)
            wait_for(lambda: newest == [version], f"answers of version {version}", 60)  # noqa: B023
            wait_for(lambda: stack.deployment.registry.active_version("m") == version, "the pointer")  # noqa: B023
    finally:
        stop.set()
        asking.join()
    assert not failed, failed[:3]
    downloads = "".join(stack.own_log(name) for name in ("realtime", "realtime-2")).count("model.downloaded")
    assert downloads == 2  # one of each version, for both workers


def test_a_registry_that_is_silent_changes_nothing_and_is_told_once_and_by_doctor(
    server: MlflowServer, stack: Stack
) -> None:
    with server.silent():
        wait_for(lambda: "does not answer" in stack.own_log("realtime"), "the log to say so", 60)
        assert httpx.get(f"{stack.url}/predict/e3", params={"max_staleness_hours": 0}).json()["prediction"] == 3
        report = " ".join(stack.cli("doctor").stdout.split())
        assert f"the MLflow registry at {server.url} gave no answer" in report
        stack.stop("realtime-2", signal.SIGTERM)
        stack.start("realtime-2")
        wait_for(lambda: "model.ready" in stack.own_log("realtime-2").rpartition("version=2")[2], "a new worker", 60)
    wait_for(lambda: "model.registry_answers" in stack.own_log("realtime"), "the log to say so", 60)
    assert stack.own_log("realtime").count("does not answer") == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("models:/flight delay@challenger", "alias challenger not found"),
        ("models:/flight delay/9", "version=9"),
        ("models:/nothing@champion", "nothing not found"),
        ("models:/nothing", "nothing not found"),
    ],
)
def test_what_the_registry_does_not_have_is_named(server: MlflowServer, path: str, words: str) -> None:
    registered = read_registered(path)
    assert registered is not None
    with pytest.raises(ModelError) as raised:
        MlflowRegistry(server.url).find(registered)
    assert words in raised.value.message
    assert "\n" not in raised.value.message


def test_what_cannot_be_downloaded_is_named(server: MlflowServer, tmp_path: Path) -> None:
    number = server.register("gone", 1)
    newest = max((server.folder / "artifacts" / "0").iterdir(), key=lambda run: run.stat().st_mtime)
    shutil.rmtree(newest)
    source = MlflowRegistry(server.url)
    with pytest.raises((ModelError, ModelUnavailable), match="models:/gone/1"):
        source.download(RegisteredVersion("gone", number), tmp_path / "1", timeout_s=120)
    with pytest.raises(ModelUnavailable, match="raise load_timeout under"):
        source.download(RegisteredVersion("gone", number), tmp_path / "1", timeout_s=0.01)
    assert not (tmp_path / "1").exists()


def test_the_pages_model_is_registered_and_set_up(server: MlflowServer, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "mlflow.md").read_text()
    script = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert script
    environment = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = run_python(["-c", script[1]], cwd=tmp_path, env=child_environment() | environment, timeout_s=120)
    assert done.returncode == 0, done.stderr
    rows = {"entity_id": ["a", "b"], "distance": pa.array([3, 5], pa.float32())}
    pq.write_table(pa.table(rows), tmp_path / "features.parquet")
    command = re.search(r"^forecache (init .*)$", page, re.MULTILINE)
    assert command
    told = run_cli(tmp_path, *command[1].split(), "--entity-column", "entity_id", environment=environment)
    assert told.returncode == 0, told.stderr
    assert "6.0" in told.stdout  # the first row, scored
    settings = (tmp_path / "forecache.toml").read_text()
    assert 'path = "models:/delay@champion"' in settings
    assert "[models.delay]" in settings


def test_the_signature_names_the_columns_of_the_tensor_in_their_order(server: MlflowServer, tmp_path: Path) -> None:
    server.register("weighted", 100, columns=["distance", "load"])
    columns = {"entity_id": ["a", "b"], "age": [1.0, 2.0], "load": [2.0, 9.0], "distance": [3.0, 9.0]}
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    command = ["init", "--yes", "--model", "models:/weighted", "--features", "table.parquet"]
    environment = {"MLFLOW_TRACKING_URI": server.url}
    told = run_cli(tmp_path, *command, "--entity-column", "entity_id", environment=environment)
    assert told.returncode == 0, told.stderr
    assert "as the model's signature in MLflow lists them: distance, load" in told.stdout
    assert "302.0" in told.stdout  # 100 times the first column of the signature, and the second one
    assert not list(tmp_path.rglob("features.json"))  # each version has its own order
    pq.write_table(pa.table(columns).drop(["load"]), tmp_path / "table.parquet")
    told = run_cli(tmp_path, *command, "--force", environment=environment)
    assert "table.parquet lacks columns of the model's signature in MLflow: 'load'" in told.stderr


def _holding(stack: Stack, version: int) -> int:
    alive = stack.deployment.presence.roster("realtime").alive
    return len([one for one in alive if one.ready and version in one.versions.get("m", ())])
