"""The first half of `docs/features.md`, taken at its word: its contract, its function and its commands, in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from tests.support.models import write_sum_model
from tests.support.stack import ROOT, Stack, child_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

PAGE = (ROOT / "docs" / "features.md").read_text()
HALF = PAGE[: PAGE.index("## Single updates")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", HALF, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The page's deployment: route R-7 is 20 km long and has 3 open orders."""
    folder: Path = tmp_path_factory.mktemp("contract")
    [contract] = blocks("json")
    write_sum_model(folder / "model", [feature["name"] for feature in json.loads(contract)["features"]])
    (folder / "model" / "features.json").write_text(contract)
    [function] = blocks("python")
    (folder / "delivery_features.py").write_text(function)
    counted = pd.to_datetime([datetime.now(UTC)], utc=True)
    table = {"entity_id": ["R-7"], "distance": [20.0], "vehicle": [None], "open_orders": [3.0], "counted_at": counted}
    pd.DataFrame(table).astype({"vehicle": "Int32"}).to_parquet(folder / "routes.parquet")
    toml = '[models.route]\npath = "model"\nallow_code = true\n[models.route.realtime]\ntimeout_ms = 5000\n'
    with Stack(folder, toml) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        yield stack


@pytest.mark.slow
def test_the_page_s_contract_function_and_commands_do_what_it_says(stack: Stack) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 4
    hour = datetime.now(ZoneInfo("Europe/Berlin")).hour
    _, explained, overridden, shown = (shell(stack, line) for line in lines)
    answer = json.loads(explained)
    assert answer["prediction"] in (20 + 1 + 3 + 5 + hour, 20 + 1 + 3 + 5 + (hour + 1) % 24)
    assert answer["imputed_features"] == ["vehicle", "rain"]
    told = answer["explanation"]
    assert told["features"]["distance_per_order"]["value"] == 5
    assert told["features"]["distance_per_order"]["source"] == "delivery_features:ratios"
    for named in ("made_this_answer", "contract_hash", "vector_hash", "problem", "groups", "at"):
        assert named in told
    [item] = json.loads(overridden)["predictions"]
    assert item["prediction"] - answer["prediction"] in (2.5, 3.5)
    assert "traffic" in shown
    assert "delivery_features:ratios" in shown


def shell(stack: Stack, line: str) -> str:
    environment = {**child_environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line.replace("localhost:8000", f"127.0.0.1:{stack.api_port}"),
        shell=True, cwd=stack.folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout
