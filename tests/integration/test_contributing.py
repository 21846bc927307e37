"""CONTRIBUTING.md, taken at its word: what it has one type, typed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from coverage import CoverageData

from tests.support.plain_models import Times, write_version
from tests.support.redis_server import missing
from tests.support.stack import ROOT, Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MODEL = """
[models.m]
path = "model"
allow_code = true
features = "t.parquet"
"""


def commands(section: str) -> list[str]:
    """The lines of a section's blocks of code, without their comments."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def shell(line: str, folder: Path) -> str:
    """Run a line as somebody would in the checkout, with the Python of this test and its folder for `build/one`."""
    here = line.replace(".venv/bin/", f"'{Path(sys.executable).parent}'/").replace("build/one", f"'{folder}/one'")
    # the inner tests are no part of this run
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FORECACHE_", "PYTEST_"))}
    done = subprocess.run(
        here, shell=True, cwd=ROOT, env=own | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow  # each line starts pytest, and the last ones a deployment
def test_the_commands_that_run_some_tests_do(tmp_path: Path) -> None:
    # a whole folder takes long: one file of it, by the same options
    lines = [line.replace("tests/unit ", "tests/unit/serving/test_coalescer.py ") for line in commands("Tests")]
    *tests, logs = [shell(line, tmp_path) for line in lines if not line.startswith("make ")]
    assert len(tests) == 4
    assert all(" passed" in said for said in tests)
    assert "process=realtime" in logs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["runtime", "sink", "setting", "metric"])
def test_the_tests_of_what_is_added_are_found_by_their_commands(kind: str, tmp_path: Path) -> None:
    lines = commands(f"Add a {kind}")
    assert lines
    for line in lines:
        assert " passed" in shell(line, tmp_path)


#: starts a process as tests start workers, by a fork, and one as users do; each imports one module of ours
STARTS = """
import os, subprocess, sys
from pathlib import Path
from tests.support.warm_start import run_python
run_python(["-c", "import inference.clock"], cwd=Path("/"), env=os.environ, timeout_s=60)
subprocess.run([sys.executable, "-c", "import inference.monitoring.presence"], cwd="/", check=True)
"""


@pytest.mark.slow  # under coverage, the process that forks imports for five seconds
def test_coverage_counts_the_processes_that_tests_start(tmp_path: Path) -> None:
    (tmp_path / "starts.py").write_text(STARTS)
    own = os.environ | {"PYTHONPATH": str(ROOT), "COVERAGE_FILE": str(tmp_path / "data")}
    for words in (["run", tmp_path / "starts.py"], ["combine", "--quiet"]):
        subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, env=own, check=True)
    counted = CoverageData(str(tmp_path / "data"))
    counted.read()
    for file in ("clock.py", "gpus.py"):
        assert counted.lines(str(ROOT / "inference" / file))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("run"), MODEL) as stack:
        write_version(stack.folder / "model", 1, Times(2.0))
        table = pd.DataFrame({"entity_id": [f"e{i}" for i in range(50)], "x": [float(i) for i in range(50)]})
        table.to_parquet(stack.folder / "t.parquet")
        stack.start("maintenance", "gpu", "realtime", "api")
        stack.wait_ready()
        yield stack


def test_a_run_is_read_in_redis(stack: Stack, tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        missing("redis-cli on PATH")
    done = stack.cli("batch", "run", "m", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout)["run_id"]
    lines = commands("Read a run in Redis")
    said = [
        shell(line.replace('"$CACHE"', stack.redis.url(1)).replace("MODEL", "m").replace("RUN", run_id), tmp_path)
        for line in lines
    ]
    assert len(said) == 5
    assert all(text.strip() for text in said), said
    assert run_id in said[0]
