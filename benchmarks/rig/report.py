"""One form for every result: a table for people, one JSON object on the last line for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, Python, date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def print_report(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    figures: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print the table and, for programs, `figures` with the machine as the last line."""
    where = machine()
    table = Table(title=f"{title}\n{where['cpu']}, {where['cores']} cores, {where['date']}")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    Console().print(table)
    if as_json:
        print(json.dumps({**figures, "machine": where}), flush=True)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:,.2f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
