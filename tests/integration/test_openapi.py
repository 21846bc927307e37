"""The OpenAPI document against the real API: schemathesis makes requests of it, good and bad ones, and checks answers.

Redis and the worker are real. `GET /predict/{entity_id}` goes beside FastAPI and writes its own entry.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.flights import write_flights
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

#: for each operation, beside those that cover every constraint of its schema
EXAMPLES = 8
#: a 503 is an answer that the document knows: a budget of 1 ms cannot be kept
CONFIG = """
[checks]
# nothing here is deleted, keys have a test of their own, and what fits a schema may be an entity that nobody knows
positive_data_acceptance.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
ignored_auth.enabled = false
not_a_server_error.expected-statuses = ["2XX", "4XX", 503]

# TensorFlow Serving answers a wrong method with 400, and so does whoever speaks its protocol
[[operations]]
include-path-regex = "^/v1/"
checks.unsupported_method.enabled = false
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openapi")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


def schemathesis(stack: Stack, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Test the API that runs, by its own document; what was wrong is in the output."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", f"{stack.url}/openapi.json"]
    return subprocess.run(
        [*command, "--max-examples", str(EXAMPLES), "--continue-on-failure",
         "--no-color", *options],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_promises(stack: Stack, tmp_path: Path) -> None:
    done = schemathesis(stack, tmp_path, "--phases", "coverage,fuzzing,stateful", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    paths = httpx.get(f"{stack.url}/openapi.json").json()["paths"]
    assert "get" in paths["/predict/{entity_id}"]
    assert f"Tested: {sum(map(len, paths.values()))}" in done.stdout, done.stdout
    assert httpx.get(f"{stack.url}/predict/F7").json()["prediction"] == 8.0, "everything still works"
