"""The benchmark of a rolling restart, held to what it promises: no request fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.redis_server import missing
from tests.support.stack import ROOT, child_environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_rolling_restart_of_everything_loses_no_request() -> None:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None:
        missing("haproxy")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "rolling_restart.py", "--json", "--no-baseline", "--rate", "50"],
        cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["failed"] == 0, done.stdout
    assert {"hit_batch", "computed"} <= set(figures["outcomes"])
