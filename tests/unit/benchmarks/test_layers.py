"""The benchmark of layers names functions of the product, and adds up what they took."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
MS = 1_000_000


@pytest.fixture
def layering(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rig.layering")


def _spans_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spans_under_test", BENCHMARKS / "rig/spans/sitecustomize.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_function_that_is_timed_exists() -> None:
    for name, functions in _spans_module().TIMED.items():
        for path in functions:
            found = importlib.import_module(name)
            for part in path.split("."):
                found = getattr(found, part)
            assert callable(found)


def _trace(layering: ModuleType, rows: list[int]) -> object:
    count = len(rows)
    return layering.Trace(
        row=np.array(rows),
        due_us=np.full(count, 1000),
        sent_us=np.full(count, 1000),
        received_us=np.full(count, 101_000),
        outcome=np.array(["computed"] * count),
        duration_s=1.0,
        client_core=0.1,
        next_miss=count,
    )


def _write(folder: Path, spans: list[tuple[str, str, int, int]]) -> None:
    lines = [f"{name},{numbers},{began * MS},{ended * MS}" for name, numbers, began, ended in spans]
    (folder / "spans-1.csv").write_text("\n".join(lines) + "\n")


REQUEST = [
    ("request", "7", 3, 98),
    ("lookup", "7", 4, 9),
    ("dispatch", "7 8", 15, 90),
    ("send", "7 8", 16, 20),
    ("task", "7 8", 30, 80),
    ("read", "", 31, 35),
    ("model", "", 40, 60),
    ("write", "", 61, 70),
    # of another task
    ("read", "", 10, 12),
    ("model", "", 85, 95),
]


def test_the_layers_of_a_request_add_up_to_what_its_client_waited(layering: ModuleType, tmp_path: Path) -> None:
    _write(tmp_path, REQUEST)
    layers = layering.read_layers(tmp_path, _trace(layering, [7]))
    assert layers.layers_ms[0].tolist() == [2, 1, 5, 6, 5, 10, 4, 20, 9, 17, 10, 8, 3]
    assert layers.layers_ms[0].sum() == layers.total_ms[0] == 100
    assert sum(layers.typical().values()) == 100


def test_a_request_that_lacks_a_span_counts_as_incomplete(layering: ModuleType, tmp_path: Path) -> None:
    _write(tmp_path, REQUEST)
    layers = layering.read_layers(tmp_path, _trace(layering, [7, 8]))
    assert layers.complete == 0.5


def test_a_worker_that_begins_before_the_sender_returned_makes_no_negative_wait(
    layering: ModuleType, tmp_path: Path
) -> None:
    _write(tmp_path, [("send", "7 8", 16, 33) if span[0] == "send" else span for span in REQUEST])
    layers = layering.read_layers(tmp_path, _trace(layering, [7]))
    assert layers.medians()["queue wait"] == 0
    assert layers.medians()["enqueue"] == 15
