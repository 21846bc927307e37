"""The command `forecache`, which finds its packages even where a folder of the user's has their names.

`app`, `tasks` and `workers` are usual names. With `PYTHONPATH=.`, as many projects have it, a folder or file of that
name in the working directory comes first.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

#: where the packages lie, beside this file
_HERE = Path(__file__).resolve().parent
_NAMES = ("app", "tasks", "workers", "inference", "beat_schedule")


def prefer_own_packages() -> None:
    """Put Forecache's packages first on the path of this process and of those that it starts, if others hide them."""
    if all(_is_own(name) for name in _NAMES):
        return
    sys.path.insert(0, str(_HERE))
    rest = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), *([rest] if rest else [])])


def _is_own(name: str) -> bool:
    spec = PathFinder.find_spec(name)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(_HERE in Path(place).resolve().parents for place in places)


def main() -> None:
    """Run the command."""
    prefer_own_packages()
    from app.cli import main as run

    run()
