"""Whether the cache Redis has room for three generations of each table and for the answers on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.cli.doctor.findings import Check, Finding, error, ok, size_text, warning
from inference.monitoring.statistics import HitWindows
from inference.outcomes import Outcome
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import TensorSpec
from inference.settings import ModelSettings
from inference.store import Manifest, Table
from inference.store.codec import codec_for

#: current, previous, and the one being loaded
GENERATIONS = 3
#: what Redis takes for a row beside its packed value: id, field header, a share of its bucket (benchmarks/memory.py)
ROW_OVERHEAD_BYTES = 19
#: text and values of unknown shape; nobody knows before they are there
LOOSE_FIELD_BYTES = 32
#: an answer on demand has a key and an expiry of its own
OVERLAY_ENTRY_BYTES = 150
#: above this share of the limit it is time to look
TIGHT = 0.7


@dataclass(frozen=True)
class TableSize:
    """One table: its `rows`, what each takes, whether that was `measured`, and how many generations are there now."""

    rows: int
    bytes_per_row: float
    measured: bool
    generations: int

    @property
    def needed_bytes(self) -> float:
        """What three generations take."""
        return GENERATIONS * self.rows * self.bytes_per_row

    @property
    def held_bytes(self) -> float:
        """What the generations that are there take."""
        return self.generations * self.rows * self.bytes_per_row


def table_sizes(
    cache: Client, keys: Keys, model: str, *, source_rows: int | None, outputs: Sequence[TensorSpec]
) -> list[TableSize]:
    """Return the sizes of a model's predictions and of its loaded features, as far as anyone can tell them.

    `source_rows`: of the table that runs read; None for none. `outputs`: of the model, for the estimate before
    its first run; one float32 is assumed when there are none.
    """
    sizes: list[TableSize] = []
    for kind, rows in ((TableKind.PREDICTIONS, source_rows), (TableKind.FEATURES, None)):
        table = Table(cache, keys.table(kind, model), kind=kind, model=model)
        manifest, generations = _current(table)
        if manifest is not None:
            sizes.append(_measured(table, manifest, generations, rows))
        elif rows is not None:
            sizes.append(TableSize(rows, estimated_bytes_per_row(outputs), measured=False, generations=0))
    return sizes


def overlay_bytes(cache: Client, keys: Keys, name: str, model: ModelSettings, rows: int | None) -> float:
    """Return what answers on demand take: those computed within `keep`, at most one for each row."""
    computed = HitWindows(cache, keys).read(name, model.realtime.keep).outcomes[Outcome.COMPUTED]
    return OVERLAY_ENTRY_BYTES * (computed if rows is None else min(computed, rows))


def memory_finding(info: Mapping[str, Any], sizes: Sequence[TableSize], overlay: float) -> Finding:
    """Return whether the peak fits: what is to be kept, and what others keep in the same server."""
    limit = float(info.get("maxmemory") or info.get("total_system_memory") or 0)
    needed = sum(size.needed_bytes for size in sizes) + overlay
    others = max(float(info.get("used_memory", 0)) - sum(size.held_bytes for size in sizes), 0.0)
    how = "measured" if sizes and all(size.measured for size in sizes) else "estimated"
    detail = f"{GENERATIONS} generations and answers on demand take {size_text(needed)} ({how}), all else "
    detail += size_text(others)
    if not limit:
        return ok(Check.REDIS, "memory", f"{detail}; it does not tell how much it may take")
    detail += f", of {size_text(limit)} ({'maxmemory' if info.get('maxmemory') else 'all of its machine'})"
    fix = "give the cache Redis more memory (maxmemory, or a larger machine), or score fewer rows"
    if needed + others > limit:
        return error(Check.REDIS, "memory", f"too little: {detail}", fix)
    if needed + others > TIGHT * limit:
        return warning(Check.REDIS, "memory", f"tight: {detail}", fix)
    return ok(Check.REDIS, "memory", detail)


def estimated_bytes_per_row(fields: Sequence[TensorSpec]) -> float:
    """Return what a row of these fields will take in Redis; of one float32 when there are none."""
    known = codec_for(tuple(fields)).dtype.itemsize if fields else 8
    return known + ROW_OVERHEAD_BYTES + LOOSE_FIELD_BYTES * sum(not field.is_fixed_number for field in fields)


def _current(table: Table) -> tuple[Manifest | None, int]:
    """Return the manifest of the generation that serves, or None, and how many generations there are."""
    current = table.pointer().current
    return (None if current is None else table.generations.manifest(current)), len(table.generations.all())


def _measured(table: Table, manifest: Manifest, generations: int, source_rows: int | None) -> TableSize:
    """Return the size of a table by what some of its buckets take."""
    per_row = table.generations.row_bytes(manifest)
    expected = manifest.rows_expected if source_rows is None else source_rows
    if per_row is None:
        return TableSize(expected, estimated_bytes_per_row(manifest.fields), measured=False, generations=generations)
    return TableSize(expected, per_row, measured=True, generations=generations)
