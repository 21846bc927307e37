"""A real MLServer (Open Inference Protocol) in an environment of its own: its packages would not fit beside ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.support.peers import peer_python
from tests.support.ports import free_port
from tests.support.waiting import wait_for

REQUIREMENT = "mlserver==1.7.1"

#: written beside the models: MLServer's own runtimes do not say what their models take
_CODE = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse

WORDS = {"rot": (1, "red"), "grün": (2, "green")}


class Plain(MLModel):
    async def load(self):
        kept = np.load(self.settings.parameters.uri)
        self.weights, self.bias = kept["weights"], kept["bias"]
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = (x @ self.weights + self.bias).astype(np.float32)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


class Text(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        found = [WORDS.get(word, (0, "?")) for word in StringCodec.decode_input(payload.inputs[0])]
        code = np.array([[code] for code, _ in found], dtype=np.int64)
        outputs = [NumpyCodec.encode_output("code", code)]
        outputs.append(StringCodec.encode_output("english", [word for _, word in found]))
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


class MLServer:
    """MLServer over the models `plain` and `text` in a folder, until it leaves the `with` block."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.port = self.grpc_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "home.py").write_text(_CODE)
        self._model("plain", "home.Plain", [("x", "FP32", [-1, 4])], [("y", "FP32", [-1, 1])], str(weights))
        outputs = [("code", "INT64", [-1, 1]), ("english", "BYTES", [-1, 1])]
        self._model("text", "home.Text", [("colour", "BYTES", [-1])], outputs, "none")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MLServer:
        python = peer_python(REQUIREMENT)
        # a port that was free may be taken by the time that MLServer, seconds later, asks for it
        for _ in range(3):
            self._start(python)
            try:
                wait_for(self._ready_or_ended, "MLServer", 120)
            except BaseException:
                self.__exit__()
                raise
            if self._ended() is None:
                return self
        raise AssertionError(f"MLServer ended three times: {(self.folder / 'log').read_text()[-3000:]}")

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._ended() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(5)

    def _start(self, python: Path) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        settings = {
            "http_port": self.port, "grpc_port": self.grpc_port, "metrics_port": free_port(), "host": "127.0.0.1",
            "parallel_workers": 0,
        }  # fmt: skip
        (self.folder / "settings.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python.parent / "mlserver"), "start", str(self.folder)],
                env={**os.environ, "PYTHONPATH": str(self.folder)}, cwd=self.folder, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _ended(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def _ready_or_ended(self) -> bool:
        if self._ended() is not None:
            return True
        # asked for only once it listens: a client of a port where nobody listens yet may be given that port itself
        if "Uvicorn running on http://127.0.0.1:" + str(self.port) not in (self.folder / "log").read_text():
            return False
        try:
            return all(httpx.get(f"{self.url}/v2/models/{name}/ready").is_success for name in ("plain", "text"))
        except httpx.TransportError:
            return False

    def _model(self, name: str, code: str, inputs: list, outputs: list, uri: str) -> None:
        def tensors(specs: list) -> list:
            return [{"name": key, "datatype": datatype, "shape": shape} for key, datatype, shape in specs]

        settings = {
            "name": name, "implementation": code, "inputs": tensors(inputs), "outputs": tensors(outputs),
            "parameters": {"uri": uri, "version": "3"},
        }  # fmt: skip
        (self.folder / name).mkdir()
        (self.folder / name / "model-settings.json").write_text(json.dumps(settings))
