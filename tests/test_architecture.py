"""What import-linter cannot say: which files are imported by nobody, and what an import may not do."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.redis import keys as keys_module
from inference.redis.keys import RUN_PARTS, Keys, TableKeys
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


#: what the catalogue of keys writes for each argument
PLACES: dict[str, Any] = {
    "model": "M", "run_id": "R", "job_id": "J", "identity": "W", "queue": "QUEUE", "minute": "MINUTE", "day": "DAY",
    "number": "N", "bucket": "B", "field": b"ID", "digest": "DIGEST", "token": "TOKEN", "name": "NAME",
}  # fmt: skip
#: they make no key, or the start of one
NO_KEYS = {
    "base", "rows", "prefix", "model", "table", "part", "run_part", "deployment", "generation_prefix", "bucket_form",
}  # fmt: skip


def redis_keys() -> dict[str, str]:
    """Return what makes a key → the key, as the catalogue writes it."""
    made = {f"run_part {part}": Keys("P").run_part("R", part) for part in RUN_PARTS}
    for keys in (Keys("P"), TableKeys("P:T")):
        for name, member in vars(type(keys)).items():
            if name.startswith("_") or name in NO_KEYS:
                continue
            key = getattr(keys, name)
            if not isinstance(member, property):
                arguments = inspect.signature(key).parameters.values()
                key = key(*(PLACES[one.name] for one in arguments if one.kind is not one.KEYWORD_ONLY))
            made[name] = key.decode() if isinstance(key, bytes) else key
    return made


@pytest.mark.parametrize(("name", "key"), redis_keys().items())
def test_each_redis_key_is_in_the_catalogue(name: str, key: str) -> None:
    rows = [line.split("|")[1].strip() for line in (keys_module.__doc__ or "").splitlines() if line.startswith("| P")]
    assert key in rows, name


def test_redis_keys_are_spelled_in_one_file_only() -> None:
    ends = {key.rpartition(":")[2] for key in redis_keys().values()} - set(PLACES.values()) - {"ID"}
    spelled = re.compile(rf"}}:({'|'.join(sorted(ends))})[\"':{{]")
    others = [file for file in source_files() if file != Path(keys_module.__file__)]
    assert [(str(file), found[0]) for file in others for found in spelled.finditer(file.read_text("utf-8"))] == []


@pytest.mark.parametrize("module", ["app.api", "app.cli", "tasks.celery_app", "beat_schedule", "workers.maintenance"])
def test_importing_a_door_without_a_model_loads_no_tensorflow(module: str) -> None:
    libraries = ("tensorflow", "keras", "torch", "jax", "onnxruntime", "sklearn", "skops", "mlflow")
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
