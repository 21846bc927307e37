"""`docs/tables.md`, taken at its word: its tables, its `init` lines and its runs, in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inference.redis.keys import TableKind
from tests.support.plain_models import write_slow_sum_model
from tests.support.stack import ROOT, Stack, child_environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", (ROOT / "docs/tables.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_s_tables_lead_to_answers(tmp_path: Path) -> None:
    write_slow_sum_model(tmp_path / "model", ["age", "spent"], seconds=0.0)
    environment = {**child_environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    runs = []
    for language, text in BLOCKS:
        if language == "python":
            call(tmp_path, environment, [sys.executable, "-c", text])
            continue
        for line in text.splitlines():
            if name := re.fullmatch(r"export (\w+)=(.*)", line):
                environment[name[1]] = name[2].replace("$PWD", str(tmp_path))
            elif line.startswith("forecache batch run"):
                runs.append(line.split())
            else:
                call(tmp_path, environment, line.split())
    catalog = {name: value for name, value in environment.items() if name.startswith("PYICEBERG")}
    with Stack(tmp_path, (tmp_path / "forecache.toml").read_text()) as stack:
        stack.start("gpu", "maintenance", "api", environment=catalog)
        stack.wait_ready()
        printed = [call(tmp_path, environment, run) for run in runs]
        again = json.loads(printed[2].splitlines()[-1])
        assert again["change_feed"] == "0 entities were written since; 3 other rows were not read"
        expected = {"csv": ("007", 32.5), "delta": ("u2", 42.0), "iceberg": ("u3", 28.5), "sql": ("u2", 2.5)}
        for name, (entity_id, value) in expected.items():
            [entry] = stack.deployment.table(TableKind.PREDICTIONS, f"from-{name}").read([entity_id])
            assert entry is not None
            assert list(entry.values.values()) == [value]


def call(folder: Path, environment: dict[str, str], command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
