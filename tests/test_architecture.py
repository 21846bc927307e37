"""What import-linter cannot say: which files are imported by nobody, and what an import may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import child_environment
from tests.support.warm_start import run_python

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("app", "tasks", "workers", "inference")


def imported_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def source_files() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def test_nobody_imports_the_beat_schedule() -> None:
    assert [str(f) for f in source_files() if "beat_schedule" in imported_names(f)] == []


def test_redis_keys_are_spelled_in_one_file_only() -> None:
    others = [f for f in source_files() if f != ROOT / "inference" / "keys.py"]
    spelled = [str(f) for f in others if ":pointer" in f.read_text(encoding="utf-8")]
    assert spelled == []


@pytest.mark.parametrize("module", ["app.api", "app.cli", "tasks.celery_app", "beat_schedule", "workers.maintenance"])
def test_importing_a_door_without_a_model_loads_no_tensorflow(module: str) -> None:
    libraries = ("tensorflow", "keras", "torch", "jax", "onnxruntime", "sklearn", "skops")
    code = f"import {module}, sys; sys.exit(any(m in sys.modules for m in {libraries}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["app.api", "app.cli", "tasks.realtime", "beat_schedule", "workers.gpu", "workers.realtime"]
)
def test_importing_a_module_connects_to_nothing(module: str) -> None:
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('connected at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {module}\n"
    )
    done = run_python(["-c", code], cwd=ROOT, env=child_environment(), timeout_s=60)
    assert done.returncode == 0, done.stderr
