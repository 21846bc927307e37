"""The HTTP service over fakes, for attacks that need no worker; and the bodies that the benchmark of attacks sends."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.test_api import http, it  # noqa: F401 - fixtures

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def rig_attacks() -> ModuleType:
    """`benchmarks/rig/attacks.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHMARKS))
        return importlib.import_module("rig.attacks")
