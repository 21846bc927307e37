"""Columns with missing values: which of them the model takes as they are, and what to write for the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.features import Feature, FeatureContract
from inference.features.columns import column_values
from inference.features.contract import CONTRACT_FILE
from inference.features.rows import take
from inference.models import score_rows
from inference.models.formats import format_named
from inference.models.loaded import LoadedModel
from inference.onboarding.head import TableHead
from inference.schema import DType

_MOST_SHOWN = 5

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gaps:
    """The contract, its features nullable that may be missing, and what to do about the others (None: nothing)."""

    contract: FeatureContract
    advice: str | None


def find_gaps(loaded: LoadedModel, head: TableHead) -> Gaps:
    """Try a row with each feature missing that some row of the head lacks.

    Features with a default, and those that are nullable already, are left alone.
    """
    contract = loaded.vectoriser.contract
    missing = _missing(contract, head.table)
    if not missing:
        return Gaps(contract, None)
    borne = _borne(loaded, [one for one in contract.features if one.name in missing], head, missing)
    features = tuple(replace(one, nullable=True) if one.name in borne else one for one in contract.features)
    left = {name: mask for name, mask in missing.items() if name not in borne}
    return Gaps(replace(contract, features=features), _advice(contract, left, head) if left else None)


def _missing(contract: FeatureContract, table: pa.Table) -> dict[str, Mask]:
    """Return by feature which rows lack a value; only features of which some row does."""
    found: dict[str, Mask] = {}
    for feature in contract.given:
        if feature.default is None and not feature.nullable:
            mask = column_values(_column(table, feature), feature).missing
            if mask.any():
                found[feature.name] = mask
    return found


def _column(table: pa.Table, feature: Feature) -> pa.Array:
    column = table.column(feature.table_column).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _borne(loaded: LoadedModel, features: Sequence[Feature], head: TableHead, missing: Mapping[str, Mask]) -> set[str]:
    """Return the features of which the model answers a row that lacks them, all its other values being there."""
    format_ = format_named(loaded.record.format)
    tried = [one for one in features if one.dtype.is_float or (one.dtype is DType.STRING and format_.missing_text)]
    if not tried:
        return set()
    row = loaded.vectoriser.features_from_arrow(head.table.slice(0, 1).combine_chunks().to_batches()[0], at=0.0)
    block = {name: values.copy() for name, values in take(row.block, np.zeros(len(tried), dtype=np.intp)).items()}
    for feature in features:  # where the first row lacks a value, another one's stands
        known = np.flatnonzero(~missing[feature.name])
        if len(known):
            block[feature.name][:] = column_values(_column(head.table, feature), feature).array[known[0]]
    for number, feature in enumerate(tried):
        block[feature.name][number] = feature.missing_value
    failed = score_rows(loaded, block).failed
    return {feature.name for feature, fails in zip(tried, failed.tolist(), strict=True) if not fails}


def _advice(contract: FeatureContract, left: Mapping[str, Mask], head: TableHead) -> str:
    rows = int(np.any(list(left.values()), axis=0).sum())
    features = [one for one in contract.features if one.name in left]
    shown = ", ".join(_with_default(one, head.table, left[one.name]) for one in features[:_MOST_SHOWN])
    more = f" and {len(features) - _MOST_SHOWN} more" if len(features) > _MOST_SHOWN else ""
    return (
        f"{rows} of {head.words} lack a value that the model needs, and the first run would leave them out, which "
        f"max_quarantined_fraction forbids: write in "
        f"{CONTRACT_FILE} the default that its training filled in, such as {shown}{more}"
    )


def _with_default(feature: Feature, table: pa.Table, missing: Mask) -> str:
    """Return a feature with a default that may do: the median of numbers, else nothing said."""
    default: Any = False if feature.dtype is DType.BOOL else ""
    if feature.dtype.is_float or feature.dtype.is_integer:
        known = column_values(_column(table, feature), feature).array[~missing]
        median = float(np.median(known)) if known.size else 0.0
        default = float(f"{median:.6g}") if feature.dtype.is_float else round(median)
    text = json.dumps({"name": feature.name, "dtype": feature.dtype.value, "default": default}, ensure_ascii=False)
    return text if not feature.shape else f'{text[:-1]}, "shape": {list(feature.shape)}}}'
