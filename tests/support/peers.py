"""Environments of their own for other people's servers and clients, whose packages would not fit beside ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def peer_python(*requirements: str) -> Path:
    """Return the interpreter of an environment with these packages; the first time it is made, which takes a while."""
    folder = ROOT / ".peers" / re.sub(r"[^a-z0-9.]+", "-", "-".join(requirements)).strip("-")
    if not (folder / ".installed").exists():
        make_environment(folder, *requirements)
        (folder / ".installed").touch()
    return folder / "bin" / "python"


def make_environment(folder: Path, *wanted: str) -> Path:
    """Make an environment with what `pip install` is to install, and return its interpreter.

    As the Makefile does: by uv, which takes a quarter of pip's time, and by pip where uv does not reach the packages.
    """
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    by_uv = [str(uv), "pip", "install", "--python", str(python)]
    by_pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    for installer in [by_uv, by_pip] if uv.exists() else [by_pip]:
        installed = subprocess.run(
            [*installer, "--quiet", *wanted],
            cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not installed.returncode:
            return python
    pytest.fail(f"{', '.join(wanted)} cannot be installed: {installed.stderr[-1000:]}")


def clean_environment() -> dict[str, str]:
    """This environment without what could lend another one our sources or anybody's settings."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(("PYTHON", "FORECACHE_"))}


def run_peer(python: Path, code: str, *arguments: str, timeout_s: float = 120) -> str:
    """Run a script in that environment and return what it prints; fails with its errors if it fails."""
    done = subprocess.run(
        [str(python), "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
