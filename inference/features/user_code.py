"""Modules of the user's, named in settings and contracts: as Python finds them, then in the deployment's folder."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def is_findable(module: str, folder: Path) -> bool:
    """Return whether a module, or the package that it is in, can be found. Nothing is imported."""
    top = module.partition(".")[0]
    return importlib.util.find_spec(top) is not None or PathFinder.find_spec(top, [str(folder)]) is not None


def import_module(module: str, folder: Path | None) -> ModuleType:
    """Import a module, which runs its code. `folder` comes last, so that it hides nothing; None for nowhere else.

    Raises whatever the module does while it is imported, and ModuleNotFoundError.
    """
    look_in(folder)
    return importlib.import_module(module)


def look_in(folder: Path | None) -> None:
    """Have Python find modules in a folder too, after all other places; None changes nothing."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
