"""Tells what an entity's features are, where each is from, and how old it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from inference.clock import to_iso
from inference.features.contract import FeatureContract
from inference.features.gathering import Gathered, GroupReading
from inference.features.groups import GroupSource, GroupStatus
from inference.features.rows import take
from inference.schema import Block

DEFAULT_SOURCE = "default"


def explain(
    gathered: Gathered, contract: FeatureContract, now: float, *, hash_of: Callable[[Block], str]
) -> dict[str, Any]:
    """Return plain JSON about the first entity that was gathered at `now` (epoch seconds).

    `features`: name → `value`, `group`, `source` (`table`, the name of a fallback, of a function, `default`, or null),
    `as_of` and `age_s` of its group, null where it has none. `groups`: name → `status`, `source`, `as_of`, `age_s`.
    `vector_hash` (`hash_of` a row of features) is null, and `problem` says why, when the features cannot be used.
    """
    rows = gathered.rows
    why = rows.first_reasons().get(0)
    groups = {group.name: _group(gathered.groups[group.name], group.source, now) for group in contract.groups}
    imputed = [name for name in contract.names if name in rows.imputed and rows.imputed[name][0]]
    features = {
        feature.name: {
            "value": _plain(rows.block[feature.name][0]) if not _lacks(feature.name, gathered) else None,
            "group": feature.group,
            **({**_AGELESS, "source": DEFAULT_SOURCE} if feature.name in imputed else _of(groups[feature.group])),
        }
        for feature in contract.features
    }
    return {
        "at": to_iso(now),
        "contract_hash": contract.hash,
        "vector_hash": None if why else hash_of(take(rows.block, _FIRST)),
        "known": bool(gathered.known[0]),
        "problem": f"feature {why.feature!r}: {why.reason}" if why else None,
        "imputed_features": imputed,
        "features": features,
        "groups": groups,
    }


_FIRST = np.array([0])
_AGELESS = {"source": None, "as_of": None, "age_s": None}


def _group(reading: GroupReading, source: GroupSource, now: float) -> dict[str, Any]:
    as_of = float(reading.as_of[0])
    is_aged = source is GroupSource.TABLE and reading.status[0] is GroupStatus.PRESENT
    return {
        "status": reading.status[0].value,
        "source": reading.source[0],
        "as_of": to_iso(as_of) if is_aged else None,
        "age_s": round(now - as_of, 3) if is_aged else None,
    }


def _of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in _AGELESS}


def _lacks(name: str, gathered: Gathered) -> bool:
    """Whether the feature holds only what fills the place of a missing value."""
    return any(reason.feature == name and 0 in reason.rows for reason in gathered.rows.reasons)


def _plain(value: Any) -> Any:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
