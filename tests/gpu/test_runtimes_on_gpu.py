"""Every runtime that can use a GPU does, and answers what its library answers on the processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.runtimes.cases import ROOT, train

pytestmark = pytest.mark.timeout(400)

#: format, what Keras computes by, the library that must be there
RUNTIMES = [
    pytest.param("torch_export", None, "torch", id="torch.export"),
    pytest.param("keras", "torch", "torch", id="keras-torch"),
    pytest.param("keras", "jax", "jax", id="keras-jax"),
    pytest.param("keras", "tensorflow", "tensorflow", id="keras-tensorflow"),
    pytest.param("saved_model", None, "tensorflow", id="saved-model"),
    pytest.param("onnx", None, "onnxruntime", id="onnx"),
]
#: GPUs multiply float32 with fewer digits (TF32: ten bits) where a library leaves it to them
TOLERANCE = {"gpu": 5e-3, "cpu": 1e-5}
ROWS = 8192


def load(folder: Path, rows: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.gpu_answers", str(folder), str(rows)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def answers(folder: Path, rows: int, **variables: str) -> dict[str, Any]:
    done = load(folder, rows, **variables)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def needs(library: str, device: str) -> None:
    """Skip where the library, or its build for GPUs, is not installed."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if device == "gpu":
        program = {
            "torch": "import torch; print(torch.cuda.is_available())",
            "jax": "import jax; print(jax.default_backend() == 'gpu')",
            "tensorflow": "import tensorflow as tf; print(bool(tf.config.list_physical_devices('GPU')))",
            "onnxruntime": "import onnxruntime as o; print('CUDAExecutionProvider' in o.get_available_providers())",
        }[library]
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
        if not told.strip().endswith("True"):
            pytest.skip(f"the build of {library} that is installed uses no GPU")


@pytest.mark.parametrize(("format_", "backend", "library"), RUNTIMES)
def test_a_runtime_computes_on_the_gpu_what_its_library_computes_on_the_processors(
    device: str, format_: str, backend: str | None, library: str, tmp_path: Path
) -> None:
    needs(library, device)
    variables = {"KERAS_BACKEND": backend} if backend else {}
    train(format_, tmp_path, **variables)
    for case in ("plain", "several"):
        told = answers(tmp_path / case, ROWS, **variables)
        assert (told["device"] == told["cpu"]) is (device == "cpu"), told
        assert told["worst"] < TOLERANCE[device], (case, told)


@pytest.mark.parametrize(("format_", "backend", "library"), RUNTIMES)
def test_a_worker_from_which_the_gpus_are_hidden_computes_on_the_processors(
    device: str, format_: str, backend: str | None, library: str, tmp_path: Path
) -> None:
    needs(library, device)
    variables = {"KERAS_BACKEND": backend} if backend else {}
    train(format_, tmp_path, **variables)
    told = answers(tmp_path / "plain", 64, CUDA_VISIBLE_DEVICES="-1", **variables)
    assert told["device"] == told["cpu"]
    assert told["worst"] < TOLERANCE["cpu"]


def test_a_share_of_the_memory_bounds_what_a_process_takes(device: str, tmp_path: Path) -> None:
    needs("torch", device)
    if device == "cpu":
        pytest.skip("the processors have no memory of their own")
    train("torch_export", tmp_path)
    refused = load(tmp_path / "plain", ROWS, GPU_MEMORY_SHARE="0.00001")
    assert refused.returncode != 0
    assert "memory" in refused.stderr
