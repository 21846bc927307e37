"""The README, taken at its word: its commands for one's own model and table, in an empty folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.models import dense_predictions, export_models
from tests.support.ports import free_port
from tests.support.stack import ROOT, child_environment, end_tree, wait_for

# four commands, of which three load TensorFlow
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

SECTION = "## Your own model and table"
ROWS = 500


def commands_of_the_readme() -> list[str]:
    """The lines of the section's first code block."""
    _, _, section = (ROOT / "README.md").read_text().partition(f"{SECTION}\n")
    return section.split("```\n")[1].splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, into which a stranger has put a model and a table of the names that the README uses."""
    export_models({tmp_path / "models" / "delay": "dense:2:0"})
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "flight": [f"FL-{number:06}" for number in range(ROWS)],
            "carrier": "XY",
            "distance": rng.integers(100, 3_000, ROWS),
            "time": rng.uniform(0, 24, ROWS).astype("float32"),
            "delay": rng.normal(10, 5, ROWS),
        }
    )
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "flights.parquet")
    return tmp_path


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def environment(port: int) -> dict[str, str]:
    """`forecache` on PATH, and free ports; nothing else is changed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ports = {"FORECACHE_API__PORT": str(port), "FORECACHE_DASHBOARD__PORT": str(free_port())}
    return {**child_environment(), **ports, "PATH": path, "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def background(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        end_tree(process)


def shell(folder: Path, environment: dict[str, str], line: str) -> str:
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_four_commands_lead_from_a_model_and_a_table_to_an_answer_over_http(
    folder: Path, port: int, environment: dict[str, str], background: list[subprocess.Popen[bytes]]
) -> None:
    init, up, run, curl = commands_of_the_readme()
    assert curl.startswith("curl http://127.0.0.1:8000/")
    curl = curl.replace(":8000/", f":{port}/")

    said = shell(folder, environment, init)
    printed = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    # what it prints are the README's next commands, but for the first row's id
    assert printed[:3] == [up, run, curl.replace("FL-000001", "FL-000000")]

    with (folder / "up.log").open("wb") as log:
        background.append(
            # exec: the signal that ends it must reach `up`, not the shell
            subprocess.Popen(f"exec {up}", shell=True, cwd=folder, env=environment, stdout=log, stderr=log)
        )
    wait_for(lambda: listens(port), f"the API; see {folder / 'up.log'}", 120)
    shell(folder, environment, run)
    answer = json.loads(shell(folder, environment, curl))

    row = pd.read_parquet(folder / "data" / "flights.parquet").iloc[[1]]
    (expected,) = dense_predictions(row[["distance", "time"]].to_numpy("float32"))
    assert answer["prediction"] == pytest.approx(float(expected), rel=1e-4)
    assert (answer["entity_id"], answer["outcome"], answer["stale"]) == ("FL-000001", "hit_batch", False)
    assert json.loads(shell(folder, environment, printed[2]))["outcome"] == "hit_batch"

    background[0].send_signal(signal.SIGTERM)
    assert background[0].wait(60) == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
