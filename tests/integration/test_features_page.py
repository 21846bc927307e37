"""`docs/features.md`, taken at its word: its settings, its function and its commands, in order."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.models import write_sum_model
from tests.support.stack import ROOT, Stack, child_environment, run_cli_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

PAGE = (ROOT / "docs" / "features.md").read_text()
#: without the section in between, which has settings of its own
FRESH = (
    PAGE[PAGE.index("## Single updates") : PAGE.index("## Two models over one table")]
    + PAGE[PAGE.index("## Memory") : PAGE.index("## Do batch and real time agree?")]
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The page's deployment: flights FL-0 to FL-9 are loaded, FL-900 stands in a database."""
    folder: Path = tmp_path_factory.mktemp("page")
    write_sum_model(folder / "model", ["distance", "load"])
    ids = [f"FL-{number}" for number in range(10)]
    pd.DataFrame({"entity_id": ids, "distance": np.arange(10.0), "load": 0.1}).to_parquet(folder / "flights.parquet")
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute("CREATE TABLE flights (flight TEXT, distance REAL, load REAL)")
        connection.execute("INSERT INTO flights VALUES ('FL-900', 900, 0.25)")
    connection.close()
    [function] = [block for block in blocks(FRESH, "python") if block.startswith("# flight_rules.py")]
    (folder / "flight_rules.py").write_text(function)
    parity = blocks(PAGE[PAGE.index("## Do batch and real time agree?") :], "toml")[0]
    model = '[models.delay]\npath = "model"\nfeatures = "flights.parquet"\n[models.delay.realtime]\ntimeout_ms = 5000\n'
    toml = model + "\n".join([*blocks(FRESH, "toml"), parity])
    # a busy machine is no outage
    with Stack(folder, toml.replace('kind = "', 'timeout = "5s"\nkind = "')) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


@pytest.mark.slow
def test_the_page_s_commands_do_what_it_says(stack: Stack) -> None:
    lines = [line for block in blocks(FRESH, "sh") for line in block.splitlines()]
    assert len(lines) >= 7
    printed = {line: shell(stack, line) for line in lines}
    assert '"applied":true' in printed[lines[0]]
    got = run_cli_json(stack.folder, "features", "get", "FL-7")["features"]
    assert got == {"distance": 800.0, "load": 0.5}
    assert '"applied":false' in printed[lines[3]], "of January: what is loaded is newer"
    assert predicted(stack, "FL-7") == 800.5
    assert predicted(stack, "FL-9") == pytest.approx(120.2)
    assert predicted(stack, "FL-900") == 900.25
    assert predicted(stack, "NEW-1") == 500.5
    hits = next(text for line, text in printed.items() if line == "forecache hits")
    assert "shop" in hits
    assert "rules" in hits


def predicted(stack: Stack, entity_id: str) -> float:
    answer: float = run_cli_json(stack.folder, "predict", entity_id)["prediction"]
    return answer


def shell(stack: Stack, line: str) -> str:
    environment = {**child_environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line.replace("localhost:8000", f"127.0.0.1:{stack.api_port}"),
        shell=True, cwd=stack.folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout
