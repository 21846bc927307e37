"""A real `mlflow server` on SQLite, with its artifacts behind it, in an environment of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support.peers import peer_python
from tests.support.plain_onnx import write_times, write_weighted_sum
from tests.support.ports import free_port
from tests.support.waiting import wait_for

REQUIREMENT = "mlflow==3.17.2"

#: of `mlflow.onnx.log_model`
ML_MODEL = """
flavors:
  onnx: {code: null, data: model.onnx, onnx_version: 1.23.2, providers: [CPUExecutionProvider]}
  python_function: {data: model.onnx, loader_module: mlflow.onnx}
"""


class MlflowServer:
    """The server, until it leaves the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MlflowServer:
        python = peer_python(REQUIREMENT)
        command = [
            str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("PYTHONPATH", None)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(self._is_ready, "mlflow server", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # SIGTERM takes it seconds
            self._process.wait(20)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let the server accept connections and say nothing within the block."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def register(self, name: str, factor: float, *, columns: Sequence[str] = ()) -> int:
        """Log an ONNX model that multiplies, and register it; returns its version. Spares the seconds of MLflow.

        With `columns` it takes a tensor of them, adds up, the first one times the factor, and they are its signature.
        """
        run = self._call("runs/create", experiment_id="0")["run"]["info"]
        place = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        described = ML_MODEL
        if columns:
            write_weighted_sum(self.folder / "written", [factor, *(1.0 for _ in columns[1:])])
            inputs = json.dumps([{"type": "double", "name": column, "required": True} for column in columns])
            described += f"signature: {{inputs: '{inputs}', outputs: null, params: null}}\n"
        else:
            write_times(self.folder / "written", factor)
        files = {"MLmodel": described.encode(), "model.onnx": (self.folder / "written" / "model.onnx").read_bytes()}
        for file, content in files.items():
            url = f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{place}/model/{file}"
            httpx.put(url, content=content).raise_for_status()
        with suppress(httpx.HTTPStatusError):  # it is there already
            self._call("registered-models/create", name=name)
        source = f"{run['artifact_uri']}/model"
        version = self._call("model-versions/create", name=name, source=source, run_id=run["run_id"])
        return int(version["model_version"]["version"])

    def move_alias(self, name: str, alias: str, version: int) -> None:
        """Move an alias, as a person or a pipeline does."""
        self._call("registered-models/alias", name=name, alias=alias, version=str(version))

    def _call(self, what: str, **body: str) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/{what}", json=body)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
        # asked for only once it listens: a client of a port where nobody listens yet may be given that port itself
        if f"http://127.0.0.1:{self.port}" not in (self.folder / "log").read_text():
            return False
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.TransportError:
            return False
