"""Scores one row of the table in a separate process, and finds out which features may be missing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ModelError, SourceError
from inference.features import Feature, FeatureContract, FeatureRows, Vectoriser
from inference.features.columns import column_values
from inference.features.contract import CONTRACT_FILE
from inference.features.rows import examples, take
from inference.models import VersionRecord, prediction_values, score_rows
from inference.models.formats import format_named
from inference.models.load_limits import LoadLimits, run_model_process
from inference.models.loaded import LoadedModel
from inference.models.loading import try_version
from inference.models.runtimes import LoadOptions, keras_environment
from inference.models.versions import find_versions
from inference.models.warm_up import check_rows_alone
from inference.onboarding.key_columns import FirstRows, read_first_rows
from inference.schema import Block, DType
from inference.settings import WorkerSettings
from inference.sources import open_source
from inference.wording import counted

#: rows that are searched for one without missing values
TRIAL_ROWS = 1_000
#: rows that are searched for missing values
_SEARCHED_ROWS = 200_000
#: rows that are scored together; some of them are also scored alone
_TOGETHER = 32
#: of a wide table, fewer rows are read
_TRIAL_VALUES = 2_000_000
_SHOWN_VALUE = 40
_SHOWN_ROW = 300


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """What to try. `path` (the model's folder) and `source` (the Parquet file or folder) are absolute."""

    model: str
    path: str
    version: int
    contract: FeatureContract
    source: str
    entity_column: str
    allow_code: bool = False
    code_folder: str | None = None
    signature: str | None = None
    engine_hosts: list[str] | None = None
    #: make features nullable if the table lacks some and the model accepts that
    adapt: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "contract": self.contract.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRequest:
        """Rebuild from `to_json`."""
        return cls(**{**data, "contract": FeatureContract.from_json(data["contract"])})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored row. Of the first `rows` rows, `unusable` cannot be scored; `why` is the first reason.

    `contract`: of the request, with nullable features where the model accepts it; `advice`: what to write for others.
    """

    entity_id: str
    prediction: Any
    rows: int
    unusable: int
    why: str | None
    contract: FeatureContract
    advice: str | None = None


def try_row_in_subprocess(request: TrialRequest, workers: WorkerSettings) -> Trial:
    """Run `try_row` in a subprocess, so that this process does not import TensorFlow. Takes seconds.

    Raises:
        ModelError: `try_row` failed; says why in one line.
    """
    output = run_model_process(
        "workers.try_row",
        what=f"model {request.model!r}",
        limits=LoadLimits.of(workers, Path(request.path)),
        stdin=json.dumps(request.to_json()),
        environment=keras_environment(workers.keras_backend),
    )
    data = json.loads(output.strip().splitlines()[-1])
    return Trial(**{**data, "contract": FeatureContract.from_json(data["contract"])})


def try_row(request: TrialRequest) -> Trial:
    """Score the first usable row of the table with the model.

    Raises:
        SourceError: none of the first rows can be scored; gives the first reason.
        ModelError: the model cannot be loaded, or fails on the row; shows the row.
    """
    path = Path(request.path)
    folder = find_versions(path)[request.version]
    options = LoadOptions(
        allow_code=request.allow_code,
        code_folder=Path(request.code_folder) if request.code_folder else None,
        signature=request.signature,
        engine_hosts=None if request.engine_hosts is None else tuple(request.engine_hosts),
    )
    loaded = try_version(request.model, path, request.version, folder, options=options, contract=request.contract)
    if isinstance(loaded, VersionRecord):
        raise ModelError(loaded.error or "it cannot be loaded")
    first_rows = _read(request, loaded.vectoriser)
    contract, advice = allow_missing(loaded, first_rows) if request.adapt else (request.contract, None)
    if contract != request.contract:
        loaded.known_vectoriser = Vectoriser(contract, loaded.vectoriser.signature)
    ids, rows = _rows_to_try(request, loaded.vectoriser, first_rows)
    bad = rows.rejected | np.asarray(illegal_entity_ids(ids))
    why = _why_not(ids, rows, bad, request.entity_column)
    if bad.all():
        hint = f"; {advice}" if advice else ""
        raise SourceError(
            f"none of the first {counted(len(ids), 'row')} of {Path(request.source).name} can be scored: {why}{hint}",
            field="features",
        )
    chosen = int(np.flatnonzero(~bad)[0])
    row = take(rows.block, np.array([chosen]))
    scored = score_rows(loaded, row)
    if scored.failed[0]:
        raise ModelError(
            f"the model fails on the row of {ids[chosen].as_py()!r}: {scored.reasons[0]}; the row: {_shown(row)}"
        )
    check_rows_alone(loaded.runtime, loaded.vectoriser.inputs(take(rows.block, np.flatnonzero(~bad)[:_TOGETHER])))
    prediction = prediction_values(scored.outputs)[0]
    return Trial(
        entity_id=ids[chosen].as_py(),
        prediction=prediction,
        rows=len(ids),
        unusable=int(bad.sum()),
        why=why or None,
        contract=contract,
        advice=advice,
    )


def trial_to_json(trial: Trial) -> str:
    """Return the trial as one line of JSON."""
    return json.dumps({**trial.__dict__, "contract": trial.contract.to_json()})


def _read(request: TrialRequest, vectoriser: Vectoriser) -> FirstRows:
    """Return the table's first rows: many, to find missing values, or only those that are tried."""
    names = list(dict.fromkeys([request.entity_column, *vectoriser.columns]))
    source = open_source(request.source, as_text=[request.entity_column, *vectoriser.text_columns])
    return read_first_rows(source, names, rows=_SEARCHED_ROWS if request.adapt else TRIAL_ROWS)


def _rows_to_try(request: TrialRequest, vectoriser: Vectoriser, first_rows: FirstRows) -> tuple[pa.Array, FeatureRows]:
    """Return the ids (as text) and the features of the rows to try."""
    rows = max(1, min(TRIAL_ROWS, _TRIAL_VALUES // max(request.contract.width, 1)))
    batch = first_rows.table.slice(0, rows).combine_chunks().to_batches()[0]
    ids = entity_ids_as_text(batch.column(request.entity_column), request.entity_column)
    return ids, vectoriser.features_from_arrow(batch, at=time.time())


def _why_not(ids: pa.Array, rows: FeatureRows, bad: npt.NDArray[np.bool_], entity_column: str) -> str:
    if rows.reasons:
        return next(examples(rows.reasons, lambda row: repr(ids[row].as_py()), most=1))
    return f"{int(bad.sum())} have no legal id in {entity_column!r}" if bad.any() else ""


def _shown(row: Block) -> str:
    """Return a row as text of bounded length."""
    values = {name: _shortened(column[0]) for name, column in row.items()}
    text = ", ".join(f"{name}={value}" for name, value in values.items())
    return text if len(text) <= _SHOWN_ROW else text[: _SHOWN_ROW - 1] + "…"


def _shortened(value: Any) -> str:
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    text = json.dumps(plain, ensure_ascii=False)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"


_MOST_SHOWN = 5

Mask = npt.NDArray[np.bool_]


def allow_missing(loaded: LoadedModel, rows: FirstRows) -> tuple[FeatureContract, str | None]:
    """Return the contract with nullable features, and advice for the others (None: not needed).

    Tries one row for each feature that some row lacks. Keeps features that have a default or are nullable already.
    """
    contract = loaded.vectoriser.contract
    missing = _missing(contract, rows.table)
    if not missing:
        return contract, None
    lacking = [one for one in contract.features if one.name in missing]
    accepted = _accepted(loaded, lacking, rows.table, missing)
    features = tuple(replace(one, nullable=True) if one.name in accepted else one for one in contract.features)
    needed = {name: mask for name, mask in missing.items() if name not in accepted}
    return replace(contract, features=features), _advice(contract, needed, rows) if needed else None


def _missing(contract: FeatureContract, table: pa.Table) -> dict[str, Mask]:
    """Return feature → mask of the rows that lack a value, for the features that some row lacks."""
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


def _accepted(
    loaded: LoadedModel, features: Sequence[Feature], table: pa.Table, missing: Mapping[str, Mask]
) -> set[str]:
    """Return the features that may be missing: the model answers a row that lacks only this one."""
    format_ = format_named(loaded.record.format)
    tried = [one for one in features if one.dtype.is_float or (one.dtype is DType.STRING and format_.missing_text)]
    if not tried:
        return set()
    row = loaded.vectoriser.features_from_arrow(table.slice(0, 1).combine_chunks().to_batches()[0], at=0.0)
    block = {name: values.copy() for name, values in take(row.block, np.zeros(len(tried), dtype=np.intp)).items()}
    for feature in features:  # where the first row lacks a value, another row's value replaces it
        known = np.flatnonzero(~missing[feature.name])
        if len(known):
            block[feature.name][:] = column_values(_column(table, feature), feature).array[known[0]]
    for number, feature in enumerate(tried):
        block[feature.name][number] = feature.missing_value
    failed = score_rows(loaded, block).failed
    return {feature.name for feature, fails in zip(tried, failed.tolist(), strict=True) if not fails}


def _advice(contract: FeatureContract, needed: Mapping[str, Mask], first_rows: FirstRows) -> str:
    rows = int(np.any(list(needed.values()), axis=0).sum())
    features = [one for one in contract.features if one.name in needed]
    shown = ", ".join(_with_default(one, first_rows.table, needed[one.name]) for one in features[:_MOST_SHOWN])
    more = f" and {len(features) - _MOST_SHOWN} more" if len(features) > _MOST_SHOWN else ""
    return (
        f"{rows} of {first_rows.words} lack a value that the model needs, and the first run would leave them out, "
        f"which max_quarantined_fraction forbids: write in {CONTRACT_FILE} the default that its training filled in, "
        f"such as {shown}{more}"
    )


def _with_default(feature: Feature, table: pa.Table, missing: Mask) -> str:
    """Return the JSON of a feature with a possible default: the median of numbers, else false or empty text."""
    default: Any = False if feature.dtype is DType.BOOL else ""
    if feature.dtype.is_float or feature.dtype.is_integer:
        known = column_values(_column(table, feature), feature).array[~missing]
        median = float(np.median(known)) if known.size else 0.0
        default = float(f"{median:.6g}") if feature.dtype.is_float else round(median)
    text = json.dumps({"name": feature.name, "dtype": feature.dtype.value, "default": default}, ensure_ascii=False)
    return text if not feature.shape else f'{text[:-1]}, "shape": {list(feature.shape)}}}'
