"""Models for tests: tiny ONNX and pickled ones, and real SavedModels, which a subprocess exports.

TensorFlow is exported only where it is the subject: a process that loads it takes five seconds, one with ONNX one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.plain_onnx import dense_weights, write_sum, write_times
from tests.support.stack import ROOT, child_environment
from tests.support.warm_start import run_python


def export_models(models: dict[Path, str]) -> None:
    """Export SavedModels: folder → kind, as `export_models.py` lists them. One subprocess for all."""
    arguments = [text for folder, kind in models.items() for text in (kind, str(folder))]
    for folder in models:
        folder.mkdir(parents=True, exist_ok=True)
    environment = {**child_environment(), "CUDA_VISIBLE_DEVICES": "-1"}
    command = ["-m", "tests.support.export_models", *arguments]
    done = run_python(command, cwd=ROOT, env=environment, timeout_s=180, with_tensorflow=True)
    assert done.returncode == 0, done.stderr


def dense_predictions(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the `dense` model gives for rows of shape [n, K], computed by numpy in float32."""
    first, last = dense_weights(x.shape[1], seed)
    return (np.tanh(x.astype(np.float32) @ first) @ last)[:, 0]


def write_features(folder: Path, features: list[dict[str, Any]]) -> None:
    """Write a model's `features.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps({"features": features}))


def float_features(k: int, *, default: float | None = None) -> list[dict[str, Any]]:
    """K float32 features named f0, f1, …"""
    extra = {} if default is None else {"default": default}
    return [{"name": f"f{i}", "dtype": "float32", **extra} for i in range(k)]


def write_sum_model(folder: Path, names: list[str]) -> None:
    """Write version 1 of a model that adds its float features up, with the contract that names them."""
    write_sum(folder / "1", len(names))
    write_features(folder, [{"name": name, "dtype": "float32"} for name in names])


def add_times_version(folder: Path, version: int, factor: float) -> None:
    """Add a version that multiplies feature `x` to a model's folder, whole from the first moment on."""
    write_features(folder, [{"name": "x", "dtype": "float32"}])
    write_times(folder / f".{version}", factor)
    (folder / f".{version}").rename(folder / str(version))
