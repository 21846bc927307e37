"""Measures which features moved most between two runs: of the same entities, or by the columns of both tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.comparison.differences import FeatureMove, FeatureMoves
from inference.batch.comparison.values import moved_rows
from inference.batch.gates import HistogramCounter, measure_drift
from inference.schema import DType, TensorSpec
from inference.sources import Slice, Source, plain_column, read_slices, whole_slices
from inference.store import Entry, Manifest, Table
from inference.wording import counted

#: entities of a sample of stored features, and rows of one of a table
_ENTITIES, _ROWS = 20_000, 200_000
_READ_AT_ONCE = 1_000
_IDS_PER_BUCKET = 64
_DIGEST_MARK = 0

Values = npt.NDArray[Any]


def stored_moves(table: Table, new: Manifest, old: Manifest, names: Sequence[str]) -> FeatureMoves:
    """Compare the features that both generations of a feature table hold of a sample of entities.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    ids = _sample_of_ids(table, new)
    pairs = [
        (before, after)
        for start in range(0, len(ids), _READ_AT_ONCE)
        for before, after in zip(
            table.read_generation(ids[start : start + _READ_AT_ONCE], old.number),
            table.read_generation(ids[start : start + _READ_AT_ONCE], new.number),
            strict=True,
        )
        if before is not None and after is not None
    ]
    known = {spec.name: spec for spec in old.fields}
    both = [spec for spec in new.fields if spec.name in names and _same_kind(spec, known.get(spec.name))]
    moves = [_move(spec, pairs) for spec in both] if pairs else []
    how = f"stored features of {counted(len(pairs), 'entity', 'entities')} that both generations have"
    return FeatureMoves(how, len(pairs), sorted(moves, key=_far))


def table_moves(new: Source, old: Source, names: Sequence[str]) -> FeatureMoves:
    """Compare the distributions of the columns that both tables have, by samples of their rows.

    Raises:
        SourceError: a table cannot be read.
    """
    both = [name for name in names if name in new.schema.names and name in old.schema.names]
    sides = [_columns(source, both) for source in (old, new)]
    moves = []
    for name in both:
        before, after = (side[name] for side in sides)
        if before.size and after.size:
            drift = _drift({name: before}, {name: after}).get(name)
            moves.append(
                FeatureMove(name, drift=drift, mean_before=float(before.mean()), mean_after=float(after.mean()))
            )
    how = "by the columns of both runs' tables, since Redis has no stored features of both: no entity by itself"
    rows = min((values.size for side in sides for values in side.values()), default=0)
    return FeatureMoves(how, rows, sorted(moves, key=_far))


def _far(move: FeatureMove) -> tuple[float, float, float]:
    return -(move.moved or 0.0), -(move.changed or 0.0), -(move.drift or 0.0)


def _sample_of_ids(table: Table, manifest: Manifest) -> list[str]:
    step = max(manifest.buckets * _IDS_PER_BUCKET // _ENTITIES, 1)
    ids: list[str] = []
    for batch in table.generations.scan(manifest, range(0, manifest.buckets, step)):
        data = batch.data.tobytes()
        for start, length in zip(batch.id_starts.tolist(), batch.id_lengths.tolist(), strict=True):
            if data[start] != _DIGEST_MARK:
                ids.append(data[start : start + length].decode())
    return ids


def _same_kind(new: TensorSpec, old: TensorSpec | None) -> bool:
    return old is not None and new.shape == old.shape and (new.dtype is DType.STRING) == (old.dtype is DType.STRING)


def _move(spec: TensorSpec, pairs: Sequence[tuple[Entry, Entry]]) -> FeatureMove:
    name = spec.name
    if not spec.is_fixed_number:
        changed = sum(before.values[name] != after.values[name] for before, after in pairs)
        return FeatureMove(name, changed=changed / len(pairs))
    old, new = (np.array([pair[at].values[name] for pair in pairs]).reshape(len(pairs), -1) for at in (0, 1))
    before, after = old.astype(np.float64), new.astype(np.float64)
    apart = np.abs(after - before)
    std = float(before.std())
    return FeatureMove(
        name,
        drift=_drift({name: before}, {name: after}).get(name),
        changed=float(moved_rows(old, new).mean()),
        moved=float(apart.mean()) / std if std else None,
        mean_before=float(before.mean()),
        mean_after=float(after.mean()),
    )


def _drift(before: dict[str, Values], after: dict[str, Values]) -> dict[str, float]:
    sides = []
    for block in (before, after):
        counter = HistogramCounter()
        counter.add(block)
        sides.append(counter.histograms)
    return measure_drift(sides[0], sides[1])


def _columns(source: Source, names: Sequence[str]) -> dict[str, Values]:
    """Return the numbers of columns in some rows of all over a table, without nulls; nothing for other types."""
    found: dict[str, list[Values]] = {name: [] for name in names}
    for batch in read_slices(source.files, _some_slices(source), columns=list(names), batch_rows=_ROWS):
        for name in names:
            found[name].append(_numbers(batch.column(name)))
    return {name: np.concatenate([np.empty(0), *parts]) for name, parts in found.items()}


def _some_slices(source: Source) -> Iterable[Slice]:
    """Return slices of up to `_ROWS` rows, the first ones of row groups all over the table."""
    slices = list(whole_slices(source.files))
    chosen = slices[:: max(len(slices) // 32, 1)]
    rows = max(_ROWS // len(chosen), 1)
    return [Slice(one.file, one.row_group, one.offset, min(one.length, rows)) for one in chosen]


def _numbers(column: pa.Array) -> Values:
    plain = plain_column(column)
    type_ = plain.type
    if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)):
        return np.empty(0)
    values: Values = pc.cast(plain.drop_null(), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values[np.isfinite(values)]
