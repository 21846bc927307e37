"""`up --only NAMES` and `--without NAMES`: which kinds of processes to run here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from inference.errors import SettingsError

KINDS = ("redis", "maintenance", "realtime", "batch", "beat", "api", "dashboard")


def chosen_kinds(only: Sequence[str] = (), without: Sequence[str] = ()) -> frozenset[str]:
    """Return the kinds to run. Each text may hold several names, with commas between them.

    Raises:
        SettingsError: a name is unknown (the nearest is named), or nothing is left.
    """
    chosen = frozenset(_names("--only", only) or KINDS) - set(_names("--without", without))
    if not chosen:
        raise SettingsError("--only and --without leave nothing to run", field="only")
    return chosen


def _names(option: str, texts: Sequence[str]) -> list[str]:
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            near = difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise SettingsError(f"{option}: unknown process {name!r}{hint} known: {', '.join(KINDS)}", field=option)
    return names
