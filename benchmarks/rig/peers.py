"""Virtual environments of their own for the peers that are measured: their packages would not fit beside ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from rig.deployment import ROOT

FOLDER = ROOT / ".peers"
RAY = ("ray[data]==2.60.0", "tensorflow>=2.19,<3", "redis>=6,<9")


def peer_python(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of a peer's environment; the first time it is made, which takes minutes."""
    mark = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{mark}"
    python = folder / "bin" / "python"
    installed = folder / ".installed"
    if not installed.exists():
        print(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        installed.touch()
    return python
