"""Tests that need an NVIDIA GPU: skipped without one.

`FORECACHE_GPU_TESTS=cpu` runs them by the processors instead, which checks the tests and says nothing of a GPU.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def gpus() -> list[str]:
    """Return the names of the GPUs that the driver tells of."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> str:
    """`gpu`, or `cpu` where the tests themselves are checked."""
    if os.environ.get("FORECACHE_GPU_TESTS") == "cpu":
        return "cpu"
    if not gpus():
        pytest.skip("no NVIDIA GPU: nvidia-smi names none")
    return "gpu"
