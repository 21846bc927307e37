"""doctor --offline: the files alone, with no server in reach."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.support.flights import write_flights
from tests.support.stack import run_cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "forecache.toml").write_text('[redis]\nurl = "redis://127.0.0.1:9"\n' + write_flights(tmp_path))
    return tmp_path


def findings(folder: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    done = run_cli(folder, "doctor", "--offline", "--json")
    told = {f"{one['check']} {one['subject']}": (one["status"], one["detail"]) for one in json.loads(done.stdout)}
    return done.returncode, told


@pytest.mark.slow
def test_good_files_pass_without_any_server(folder: Path) -> None:
    code, told = findings(folder)
    assert code == 0, told
    assert {status for status, _ in told.values()} == {"ok"}
    assert "every column that the model needs" in told["table delay"][1]


@pytest.mark.parametrize(
    ("break_it", "check"),
    [pytest.param("flights.parquet", "table delay", marks=pytest.mark.slow), ("model", "model delay")],
)
def test_what_is_missing_is_an_error(folder: Path, break_it: str, check: str) -> None:
    (folder / break_it).rename(folder / "away")
    code, told = findings(folder)
    assert (code, told[check][0]) == (1, "error")


@pytest.mark.slow
def test_a_table_without_a_column_of_the_model_is_an_error(folder: Path) -> None:
    pd.DataFrame({"entity_id": ["F1"], "a": [1.0]}).to_parquet(folder / "flights.parquet")
    code, told = findings(folder)
    assert (code, told["table delay"][0]) == (1, "error")
    assert "'b'" in told["table delay"][1]
