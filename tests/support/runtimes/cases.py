"""The models that every runtime is tested with, and how a script keeps them beside its library's own answers.

- `plain`   four numbers in, one out; learnt
- `several` several inputs, one of them a vector; several outputs, one of them a vector
- `text`    text among the inputs, text among the outputs
- `broken`  `plain` with weights that are no numbers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.stack import child_environment
from tests.support.warm_start import run_python

ANSWERS = "answers.npz"
ROOT = Path(__file__).resolve().parents[3]
ROWS = 300


def train(runtime: str, folder: Path, **variables: str) -> None:
    """Run a runtime's script: it writes one folder for each case that the format can express."""
    environment = child_environment() | {"CUDA_VISIBLE_DEVICES": "-1"} | variables
    command = ["-m", f"tests.support.runtimes.train_{runtime}", str(folder)]
    with_tensorflow = runtime == "saved_model"
    done = run_python(command, cwd=ROOT, env=environment, timeout_s=200, with_tensorflow=with_tensorflow)
    assert done.returncode == 0, done.stderr


def learnable() -> tuple[np.ndarray, np.ndarray]:
    """Rows of four numbers and what is to be learnt of them."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    y = x @ np.array([1.5, -2.0, 0.5, 3.0], np.float32) + np.sin(x[:, 0]) + 0.1
    return x, y.astype(np.float32)


def learnt_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights [4, 1] and bias [1] of the least squares."""
    x, y = learnable()
    solved = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0].astype(np.float32)
    return solved[:4, None], solved[4:]


def columns_of(x: np.ndarray) -> dict[str, np.ndarray]:
    """A table's columns f0, f1, …"""
    return {f"f{i}": x[:, i] for i in range(x.shape[1])}


def float_contract(names: list[str]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": "float32"} for name in names]


def keep(
    folder: Path,
    columns: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    *,
    features: list[dict[str, Any]] | None = None,
) -> None:
    """Write what a case's model (already in `folder/1`) was asked and answered by its own library."""
    arrays = {f"in {name}": values for name, values in columns.items()}
    arrays |= {f"out {name}": values for name, values in answers.items()}
    np.savez(folder / ANSWERS, **arrays)
    if features is not None:
        (folder / "features.json").write_text(json.dumps({"features": features}))


def asked(folder: Path) -> pa.RecordBatch:
    """The columns that a case's model was asked with."""
    columns = {name: values.tolist() for name, values in _kept(folder, "in ").items()}
    return pa.record_batch(columns)


def answered(folder: Path) -> dict[str, np.ndarray]:
    """What the library itself answered, by output."""
    return _kept(folder, "out ")


def _kept(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    with np.load(folder / ANSWERS) as kept:
        return {name.removeprefix(prefix): kept[name] for name in kept if name.startswith(prefix)}
