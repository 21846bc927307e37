"""Rows per second and latency of each runtime on an NVIDIA GPU, against the bare loop of its library there.

Each runtime's batch run goes through the whole product: Parquet, chunks, worker, Redis. Then a batch and a real-time
worker share the device. `--device cpu` runs the same by the processors, which checks this file and measures no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rig import formats
from rig.bare_loops import LOOPS
from rig.dataset import Dataset, entity_id, write_table
from rig.report import machine, print_report
from rig.stack import MODEL, ROOT, Stack, rows_per_s, run_once, temporary_folder

from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from tasks.broker import CeleryBroker

#: what is measured → format, what Keras computes by, the library that must be there
RUNTIMES = {
    "PyTorch (torch.export)": ("torch_export", None, "torch"),
    "Keras on PyTorch": ("keras", "torch", "torch"),
    "Keras on JAX": ("keras", "jax", "jax"),
    "Keras on TensorFlow": ("keras", "tensorflow", "tensorflow"),
    "TensorFlow SavedModel": ("saved_model", None, "tensorflow"),
    "ONNX Runtime": ("onnx", None, "onnxruntime"),
}
SKIPPED = "skipped: nvidia-smi names no NVIDIA GPU here, so nothing was measured (--device cpu checks the code)"
#: on GPUs libraries multiply float32 with fewer digits (TF32)
TOLERANCE = {"rtol": 1e-2, "atol": 1e-2}
BUDGET_MS = 20_000
WARM_UP_REQUESTS = 20


def main() -> None:
    """Measure each runtime, the call in a process of its own and then the product, and print."""
    options = _options()
    if options.measure:
        print(json.dumps(measure(Path(options.measure), options.format, options.call_rows, options.seconds)))
        return
    found = gpus() if options.device == "gpu" else ["none: the processors"]
    if not found:
        print(SKIPPED)
        return
    measured: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    with temporary_folder() as folder:
        for name in options.runtimes:
            format_, backend, library = RUNTIMES[name]
            if find_spec(library) is None or find_spec(format_ if format_ in ("keras", "onnx") else library) is None:
                left_out.append(f"{name}: not installed")
                continue
            own = _of_runtime(folder / format_ / (backend or "own"), format_, backend, options)
            if options.device == "gpu" and own["device"].startswith("cpu-"):
                left_out.append(f"{name}: the build that is installed uses no GPU")
                continue
            measured[name] = own
            # the next may take long: what is known is told
            print(f"{name}: {json.dumps(own)}", file=sys.stderr, flush=True)
    _report(measured, left_out, found, options)


def gpus() -> list[str]:
    """Return name and driver of each GPU that nvidia-smi tells of."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def measure(folder: Path, format_: str, rows: int, seconds: float) -> dict[str, Any]:
    """Return rates and latencies of the version in a folder, as a worker calls it and by the bare loop."""
    from inference.models.loading import load_version
    from inference.models.runtimes import LoadOptions

    version = folder / "1"
    options = LoadOptions(allow_code=True)
    loaded = load_version("m", folder, 1, version, options=options, warm_up_rows=(1, rows))
    (taken,) = loaded.runtime.signature.inputs
    (given,) = loaded.runtime.signature.outputs
    loop = LOOPS[format_](version)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ours": lambda x: loaded.predict({taken.name: x})[given.name],
        "bare": loop,
    }
    x = np.random.default_rng(1).normal(size=(rows, formats.FEATURES)).astype(np.float32)
    figures: dict[str, Any] = {"device": loaded.runtime.device}
    for call in ways.values():
        np.testing.assert_allclose(np.ravel(call(x)), formats.expected(x), **TOLERANCE)
    # in turns, so that both find the machine alike; the fastest third of the time counts
    took: dict[tuple[str, int], list[np.ndarray]] = {}
    for _ in range(3):
        for way, call in ways.items():
            for part in (x, x[:1]):
                took.setdefault((way, len(part)), []).append(_durations_s(call, part, seconds / 3))
    for (way, size), rounds in took.items():
        best = min(rounds, key=lambda durations: float(durations.mean()))
        if size == 1:
            figures |= {f"{way}_p50_ms": float(np.percentile(best, 50)) * 1000}
            figures |= {f"{way}_p99_ms": float(np.percentile(best, 99)) * 1000}
        else:
            figures[f"{way}_rows_per_s"] = rows / float(best.mean())
    return figures


def _durations_s(call: Callable[[np.ndarray], np.ndarray], x: np.ndarray, seconds: float) -> np.ndarray:
    call(x)
    durations, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call(x)
        durations.append(time.perf_counter() - began)
    return np.array(durations)


def _of_runtime(folder: Path, format_: str, backend: str | None, options: argparse.Namespace) -> dict[str, Any]:
    dataset = Dataset(folder, options.rows)
    version = dataset.model / "1"
    version.mkdir(parents=True)
    features = [{"name": f"f{number:02d}", "dtype": "float32"} for number in range(formats.FEATURES)]
    (dataset.model / "features.json").write_text(json.dumps({"features": features}))
    hidden = {**_environment(backend, options), "CUDA_VISIBLE_DEVICES": "-1"}
    script = [sys.executable, formats.__file__, format_, str(version)]
    subprocess.run(script, env=hidden, check=True, stderr=subprocess.DEVNULL)
    command = [
        sys.executable, __file__, "--measure", str(dataset.model), "--format", format_,
        "--call-rows", str(options.call_rows), "--seconds", str(options.seconds),
    ]  # fmt: skip
    done = subprocess.run(command, env=_environment(backend, options), check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | _of_product(dataset, backend, options)


def _of_product(dataset: Dataset, backend: str | None, options: argparse.Namespace) -> dict[str, float]:
    """Return rows per second of a whole run, and the latency of entities that are computed one after the other."""
    write_table(dataset.table, dataset.rows)
    stack = Stack(dataset.folder, dataset)
    stack.gpus = "auto" if options.device == "gpu" else "none"
    stack.model_lines = "allow_code = true"
    stack.variables = {"KERAS_BACKEND": backend} if backend else {}
    with stack:
        workers = stack.start_workers("gpu", "maintenance")
        stack.batch_run()  # searches the rows of a micro-batch, once for a version and device
        run_rows_per_s = rows_per_s(stack.batch_run())
        for name in workers:
            stack.stop(name)
        stack.start_workers("realtime")
        stack.forecache("features", "load", MODEL, str(dataset.table))
        stack.start_api()
        with httpx.Client(base_url=stack.url, timeout=60) as client:
            for row in range(WARM_UP_REQUESTS):  # the first may still meet an API that takes the workers for gone
                _ask(client, row % dataset.rows)
            took = [_computed_ms(client, row % dataset.rows) for row in range(options.requests)]
            shared = _while_runs_go_on(stack, client, options)
    return {
        "run_rows_per_s": run_rows_per_s,
        "miss_p50_ms": float(np.percentile(took, 50)),
        "miss_p99_ms": float(np.percentile(took, 99)),
        **shared,
        "ratio_shared_miss_p99": shared["shared_miss_p99_ms"] / float(np.percentile(took, 99)),
        "ratio_shared_run_rate": shared["shared_run_rows_per_s"] / run_rows_per_s,
    }


def _while_runs_go_on(stack: Stack, client: httpx.Client, options: argparse.Namespace) -> dict[str, float]:
    """Return the latency of misses and the rate of runs while both kinds of workers use the device."""
    stack.start_workers("gpu", "maintenance")
    took: list[float] = []
    with (
        Deployment(load_settings(stack.settings_file), WORKER, CeleryBroker) as deployment,
        ThreadPoolExecutor(1) as thread,
    ):
        run_once(deployment)  # the new worker's first calls are slow
        rates = []
        while len(took) < options.requests:
            run = thread.submit(run_once, deployment)
            while not run.done():
                took.append(_computed_ms(client, len(took) % options.rows))
            rates.append(run.result())
    return {
        "shared_run_rows_per_s": float(np.median(rates)),
        "shared_miss_p50_ms": float(np.percentile(took, 50)),
        "shared_miss_p99_ms": float(np.percentile(took, 99)),
    }


def _computed_ms(client: httpx.Client, row: int) -> float:
    began = time.perf_counter()
    answer = _ask(client, row)
    took_ms = (time.perf_counter() - began) * 1000
    if answer.get("outcome") != "computed":
        raise SystemExit(f"not computed: {answer}")
    return took_ms


def _ask(client: httpx.Client, row: int) -> dict[str, Any]:
    query = {"max_staleness_hours": 0, "timeout_ms": BUDGET_MS}
    answer: dict[str, Any] = client.get(f"/predict/{entity_id(row)}", params=query).json()
    return answer


def _report(
    measured: dict[str, dict[str, Any]], left_out: list[str], found: list[str], options: argparse.Namespace
) -> None:
    for own in measured.values():
        own["ratio_bare"] = own["ours_rows_per_s"] / own["bare_rows_per_s"]
        own["ratio_bare_p50"] = own["ours_p50_ms"] / own["bare_p50_ms"]
    network = f"{formats.FEATURES} numbers, {options.hidden} neurons; GPU: {found[0]}"
    for title, columns in (
        (
            f"Calls of {options.call_rows:,} rows, and the latency of one row; {network}",
            {
                "rows/s": "ours_rows_per_s", "bare": "bare_rows_per_s", "ratio": "ratio_bare",
                "p50 ms": "ours_p50_ms", "bare p50": "bare_p50_ms", "p99 ms": "ours_p99_ms", "bare p99": "bare_p99_ms",
            },
        ),
        (
            f"The product: runs of {options.rows:,} rows, and misses one after the other; {network}",
            {"rows/s": "run_rows_per_s", "miss p50 ms": "miss_p50_ms", "miss p99 ms": "miss_p99_ms"},
        ),
        (
            "Runs and misses at once, on one device; ratios by each alone",
            {
                "rows/s": "shared_run_rows_per_s", "ratio": "ratio_shared_run_rate",
                "miss p50 ms": "shared_miss_p50_ms", "miss p99 ms": "shared_miss_p99_ms",
                "p99 ratio": "ratio_shared_miss_p99",
            },
        ),
    ):  # fmt: skip
        rows = [(name, *(own[key] for key in columns.values())) for name, own in measured.items()]
        print_report(title, ["", *columns], rows, {}, as_json=False)
    if options.json:
        figures = {"device": options.device, "gpus": found, "left_out": left_out, "runtimes": measured}
        print(json.dumps(figures | {"machine": machine()}), flush=True)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)


def _environment(backend: str | None, options: argparse.Namespace) -> dict[str, str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "BENCH_HIDDEN": str(options.hidden)}
    if options.device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = "-1"
    return own if backend is None else {**own, "KERAS_BACKEND": backend}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), metavar="NAME")
    parser.add_argument("--hidden", type=int, default=4096, help="neurons of the network")
    parser.add_argument("--call-rows", type=int, default=8192, help="rows of one call of the model")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a whole run")
    parser.add_argument("--requests", type=int, default=500, help="computed one after the other")
    parser.add_argument("--seconds", type=float, default=6, help="of calls of each size, each way")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--format", choices=list(LOOPS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
