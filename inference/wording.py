"""Counts, sizes and durations in words, as the command line, the API and the dashboard show them."""

from __future__ import annotations


def counted(count: float, one: str, many: str | None = None) -> str:
    """Return a count with its noun, such as `1 row` or `1,200 rows`. `many`: the plural; None appends an s.

    Fractions have four digits. `one` and `many` may go on with a verb: `"row repeats", "rows repeat"`.
    """
    shown = f"{round(count):,}" if isinstance(count, int) or abs(count) >= 1000 else f"{count:.4g}"
    return f"{shown} {one if shown == '1' else many or f'{one}s'}"


def size_text(size_bytes: float) -> str:
    """Return a size in readable form, such as `84.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def duration_text(seconds: float) -> str:
    """Return a duration in readable form, such as `0.3 s`, `90 s`, `12 min`, `3.5 h` or `21 d`."""
    for limit, unit, length in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / length:.2g} {unit}" if seconds / length < 10 else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
