"""Environments of their own for other people's servers and clients, whose packages would not fit beside ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def peer_python(*requirements: str) -> Path:
    """Return the interpreter of an environment with these packages; the first time it is made, which takes minutes."""
    folder = ROOT / ".peers" / re.sub(r"[^a-z0-9.]+", "-", "-".join(requirements)).strip("-")
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        installed = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True, check=False
        )
        if installed.returncode:
            pytest.fail(f"{', '.join(requirements)} cannot be installed: {installed.stderr[-1000:]}")
        (folder / ".installed").touch()
    return python


def run_peer(python: Path, code: str, *arguments: str, timeout_s: float = 120) -> str:
    """Run a script in that environment and return what it prints; fails with its errors if it fails."""
    done = subprocess.run(
        [str(python), "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
