"""Runtimes: rows per second of one network in every format, by rows a call, as a worker calls it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rig import formats
from rig.report import print_report
from rig.stack import ROOT, temporary_folder

from inference.models.formats import FORMATS as KNOWN

SIZES = (1, 64, 8192)
#: what is measured → format, and what Keras computes by
RUNTIMES = {
    "TensorFlow SavedModel": ("saved_model", None),
    "Keras on TensorFlow": ("keras", "tensorflow"),
    "Keras on PyTorch": ("keras", "torch"),
    "Keras on JAX": ("keras", "jax"),
    "PyTorch (torch.export)": ("torch_export", None),
    "ONNX Runtime": ("onnx", None),
    "scikit-learn (skops)": ("skops", None),
}


def main() -> None:
    """Measure each runtime in a process of its own, in turns, and print."""
    options = _options()
    if options.measure:
        print(json.dumps(measure(Path(options.measure), options.seconds)))
        return
    rates: dict[str, dict[int, list[float]]] = {}
    with temporary_folder() as folder:
        present = {name: how for name, how in RUNTIMES.items() if all(map(find_spec, _libraries(*how)))}
        chosen = {name: _written(folder / name.replace(" ", "-"), *how) for name, how in present.items()}
        for _ in range(options.rounds):
            for name, where in chosen.items():
                for rows, rate in _measured(where, RUNTIMES[name][1], options.seconds).items():
                    rates.setdefault(name, {}).setdefault(int(rows), []).append(rate)
    middle = {name: {rows: round(median(found)) for rows, found in of.items()} for name, of in rates.items()}
    print_report(
        f"Rows per second of a network of {formats.FEATURES} numbers and {formats.HIDDEN} neurons, by rows a call",
        ["", *(f"{rows:,}" for rows in SIZES)],
        [(name, *(of[rows] for rows in SIZES)) for name, of in middle.items()],
        {"rows_per_s": middle},
        as_json=options.json,
    )


def measure(folder: Path, seconds: float) -> dict[int, float]:
    """Return rows per second by rows a call, of the fastest of three parts of the time; each answer was checked."""
    from inference.models.loading import load_version
    from inference.models.runtimes import LoadOptions

    loaded = load_version("m", folder, 1, folder, options=LoadOptions(allow_code=True), warm_up_rows=SIZES)
    (only,) = loaded.runtime.signature.inputs or ()
    rates: dict[int, float] = {}
    for rows in SIZES:
        x = np.random.default_rng(rows).normal(size=(rows, formats.FEATURES)).astype(np.float32)
        inputs = {only.name: x.astype(only.dtype.numpy)}
        (answer,) = loaded.predict(inputs).values()
        np.testing.assert_allclose(answer, formats.expected(x), rtol=1e-4, atol=1e-5)
        rates[rows] = max(_rate(loaded, inputs, rows, seconds / 3) for _ in range(3))
    return rates


def _rate(loaded: Any, inputs: dict[str, np.ndarray], rows: int, seconds: float) -> float:
    calls, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        loaded.predict(inputs)
        calls += 1
    return calls * rows / took


def _libraries(format_: str, backend: str | None) -> list[str]:
    """Return what must be importable; a runtime without its library is left out."""
    (library,) = (one.library for one in KNOWN if one.name == format_)
    return [library, "onnx"] if format_ == "onnx" else [library, backend or library]


def _written(folder: Path, format_: str, backend: str | None) -> Path:
    folder.mkdir()
    subprocess.run(
        [sys.executable, Path(formats.__file__), format_, str(folder)],
        env=_environment(backend), check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


def _measured(folder: Path, backend: str | None, seconds: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(folder), "--seconds", str(seconds)],
        env=_environment(backend), check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment(backend: str | None) -> dict[str, str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return own if backend is None else {**own, "KERAS_BACKEND": backend}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.9, help="for each size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
