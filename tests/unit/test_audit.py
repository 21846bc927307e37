"""What `make audit` says of what the vulnerability service answers: the service is far away, all else is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
SAFE = {"name": "numpy", "version": "2.4.0", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI and could not be audited: own (1.0)"}
ADVISORY = {"id": "PYSEC-2026-7", "aliases": ["CVE-2026-1"], "fix_versions": ["3.2", "3.1.1"]}


def audit(folder: Path, prints: str) -> subprocess.CompletedProcess[str]:
    """Run the audit with a pip-audit that has asked already."""
    (folder / "pip_audit.py").write_text(prints)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, AUDIT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("found", "told", "status"),
    [
        (
            [SAFE, {"name": "old", "version": "3.0", "vulns": [ADVISORY]}],
            "audit: old 3.0: PYSEC-2026-7 = CVE-2026-1; fixed in 3.1.1, 3.2\n"
            "audit: 2 of 2 pinned libraries looked up in the index's advisories, 1 of which concern them\n",
            1,
        ),
        (
            [SAFE, UNKNOWN],
            "audit: 1 of 2 pinned libraries looked up in the index's advisories, 0 of which concern them; "
            "NOT LOOKED UP, the index does not know them: own\n",
            0,
        ),
        (
            [UNKNOWN, UNKNOWN],
            "audit: NOT DONE, the service knows none of the 2 pinned libraries (a mirror answers for it)\n",
            0,
        ),
    ],
    ids=["an advisory", "a pin that it does not know", "a mirror"],
)
def test_it_says_which_advisories_it_knew(tmp_path: Path, found: list[Any], told: str, status: int) -> None:
    done = audit(tmp_path, f"print({json.dumps({'dependencies': found})!r})")
    assert (done.stdout, done.returncode) == (told, status)


def test_it_says_that_it_could_not_ask(tmp_path: Path) -> None:
    done = audit(tmp_path, "raise SystemExit('the service refused the connection')")
    told = "audit: NOT DONE, no vulnerability service answers: the service refused the connection\n"
    assert (done.stdout, done.returncode) == (told, 0)
